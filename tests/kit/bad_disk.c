/* A disk that is slow or fails, for one process and its children (LD_PRELOAD).
 *
 * BAD_DISK_SYNC    seconds that each fsync and fdatasync takes, besides its own
 * BAD_DISK_COUNT   file to which each of them adds the name of what it forced to the disk
 * BAD_DISK_ERRNO   error of the calls in BAD_DISK_CALLS (",open,write,") on names that have
 * BAD_DISK_PATH    this text in them
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

static const char *name_of(int fd, char *name)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, name, 4095);
    name[size < 0 ? 0 : size] = 0;
    return name;
}

static int fails(const char *call, const char *path)
{
    const char *number = getenv("BAD_DISK_ERRNO"), *calls = getenv("BAD_DISK_CALLS");
    const char *part = getenv("BAD_DISK_PATH");
    char word[64];
    if (!number || !calls || !part || !path || !strstr(path, part))
        return 0;
    snprintf(word, sizeof word, ",%s,", call);
    if (!strstr(calls, word))
        return 0;
    errno = atoi(number);
    return 1;
}

static int fails_at(const char *call, int dir, const char *path)
{
    char name[4096];
    if (path[0] != '/' && dir != AT_FDCWD) {
        name_of(dir, name);
        strncat(name, "/", sizeof name - strlen(name) - 1);
        strncat(name, path, sizeof name - strlen(name) - 1);
        path = name;
    }
    return fails(call, path);
}

#define REAL(call) ((__typeof__(&call))dlsym(RTLD_NEXT, #call))

static void forced(int fd)
{
    const char *seconds = getenv("BAD_DISK_SYNC"), *count = getenv("BAD_DISK_COUNT");
    char name[4096];
    if (count) {
        int log = REAL(open)(count, O_WRONLY | O_APPEND | O_CREAT, 0600);
        dprintf(log, "%s\n", name_of(fd, name));
        close(log);
    }
    if (seconds) {
        double wait = atof(seconds);
        struct timespec time = {(time_t)wait, (long)((wait - (time_t)wait) * 1e9)};
        nanosleep(&time, NULL);
    }
}

#define ON_FD(call, type, parameters, ...)                \
    type call parameters                                  \
    {                                                     \
        char name[4096];                                  \
        return fails(#call, name_of(fd, name)) ? -1 : REAL(call)(__VA_ARGS__); \
    }
ON_FD(write, ssize_t, (int fd, const void *data, size_t size), fd, data, size)
ON_FD(pwrite64, ssize_t, (int fd, const void *data, size_t size, off64_t at), fd, data, size, at)
ON_FD(ftruncate64, int, (int fd, off64_t size), fd, size)
ON_FD(fchmod, int, (int fd, mode_t mode), fd, mode)

#define ON_SYNC(call)                                     \
    int call(int fd)                                      \
    {                                                     \
        char name[4096];                                  \
        forced(fd);                                       \
        return fails(#call, name_of(fd, name)) ? -1 : REAL(call)(fd); \
    }
ON_SYNC(fsync)
ON_SYNC(fdatasync)

#define OPEN(call)                                        \
    int call(const char *path, int flags, ...)            \
    {                                                     \
        va_list more;                                     \
        va_start(more, flags);                            \
        mode_t mode = va_arg(more, mode_t);               \
        va_end(more);                                     \
        return fails("open", path) ? -1 : REAL(call)(path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(call)                                      \
    int call(int dir, const char *path, int flags, ...)   \
    {                                                     \
        va_list more;                                     \
        va_start(more, flags);                            \
        mode_t mode = va_arg(more, mode_t);               \
        va_end(more);                                     \
        return fails_at("open", dir, path) ? -1 : REAL(call)(dir, path, flags, mode); \
    }
OPENAT(openat)
OPENAT(openat64)

int rename(const char *from, const char *to)
{
    return fails("rename", to) ? -1 : REAL(rename)(from, to);
}
int unlink(const char *path) { return fails("unlink", path) ? -1 : REAL(unlink)(path); }
int unlinkat(int dir, const char *path, int flags)
{
    return fails_at("unlink", dir, path) ? -1 : REAL(unlinkat)(dir, path, flags);
}
int mkdir(const char *path, mode_t mode)
{
    return fails("mkdir", path) ? -1 : REAL(mkdir)(path, mode);
}
int mkdirat(int dir, const char *path, mode_t mode)
{
    return fails_at("mkdir", dir, path) ? -1 : REAL(mkdirat)(dir, path, mode);
}
int mkfifo(const char *path, mode_t mode)
{
    return fails("mkfifo", path) ? -1 : REAL(mkfifo)(path, mode);
}
int mknodat(int dir, const char *path, mode_t mode, dev_t device)
{
    return fails_at("mknod", dir, path) ? -1 : REAL(mknodat)(dir, path, mode, device);
}
int link(const char *from, const char *to)
{
    return fails("link", to) ? -1 : REAL(link)(from, to);
}
