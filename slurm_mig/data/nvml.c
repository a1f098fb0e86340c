/* The simulated libnvidia-ml.so.1 for programs that are not ours: a client of one machine.
 *
 * Each process that starts a session gets a helper (simulator/shared.py) at the other end of a
 * socket. A call travels with what its arguments point to, and the answer with what was written
 * there, so no Python gets into the program, whatever it is written in. functions.h, made from
 * simulator/signatures.py, has PYTHON, PROGRAM, MACHINE, the texts, the table and the functions.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <spawn.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, UNKNOWN = 999, MOST = 6 };

/* kind: the first letter of the word in signatures.py, S for a structure, A for an array. */
struct argument { char kind; uint32_t size; };
struct function { int count; struct argument arguments[MOST]; };
union word { void *p; uint32_t u; const char *s; };

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static int helper = -1, sessions;
static pid_t owner;

static int ask(uint32_t number, const union word *words);
#include "functions.h"

static int send_all(const void *data, size_t size) {
    const char *at = data;
    while (size) {
        ssize_t done = send(helper, at, size, MSG_NOSIGNAL);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return 0;
        at += done;
        size -= done;
    }
    return 1;
}

static int receive(void *data, size_t size) {
    char *at = data;
    while (size) {
        ssize_t done = recv(helper, at, size, 0);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return 0;
        at += done;
        size -= done;
    }
    return 1;
}

/* The helper leaves by a fork of its own: the program has no child that it does not know. */
static int start(void) {
    int ends[2], failed, status;
    pid_t child;
    char *command[] = {PYTHON, "-I", "-c", PROGRAM, MACHINE, NULL};
    char *environment[] = {"PATH=/usr/bin:/bin", "LC_ALL=C.UTF-8", NULL};
    posix_spawn_file_actions_t actions;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends)) return 0;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_adddup2(&actions, ends[1], 0);
    failed = posix_spawn(&child, PYTHON, &actions, NULL, command, environment);
    posix_spawn_file_actions_destroy(&actions);
    close(ends[1]);
    if (failed) {
        close(ends[0]);
        return 0;
    }
    while (waitpid(child, &status, 0) < 0 && errno == EINTR) {}
    helper = ends[0];
    owner = getpid();
    sessions = 0;
    return 1;
}

static void stop(void) {
    if (helper >= 0) close(helper);
    helper = -1;
}

static int send_argument(struct argument a, const union word *word) {
    uint32_t length;
    uint64_t handle;
    uint8_t there;
    switch (a.kind) {
    case 'h':
        handle = (uintptr_t)word->p;
        return send_all(&handle, sizeof handle);
    case 'u':
        return send_all(&word->u, sizeof word->u);
    case 's':
        length = strlen(word->s);
        return send_all(&length, sizeof length) && send_all(word->s, length);
    case 'C':
    case 'S':
        return send_all(word->p, a.size);
    case 'A':
        there = word->p != NULL;
        return send_all(&there, sizeof there);
    default:
        return 1;
    }
}

/* What was written: its length first, for arrays and texts differ. */
static int receive_argument(struct argument a, const union word *word) {
    uint32_t length;
    if (strchr("hus", a.kind)) return 1;
    return receive(&length, sizeof length) && (!length || receive(word->p, length));
}

static int exchange(uint32_t number, const union word *words) {
    const struct function *f = &FUNCTIONS[number];
    int32_t code;
    if (!send_all(&number, sizeof number)) return UNKNOWN;
    for (int i = 0; i < f->count; i++)
        if (!send_argument(f->arguments[i], &words[i])) return UNKNOWN;
    if (!receive(&code, sizeof code)) return UNKNOWN;
    for (int i = 0; i < f->count; i++)
        if (!receive_argument(f->arguments[i], &words[i])) return UNKNOWN;
    return code;
}

static int answer(uint32_t number, const union word *words) {
    const struct function *f = &FUNCTIONS[number];
    int starts = number == INIT || number == INIT_WITH_FLAGS, code;
    for (int i = 0; i < f->count; i++)
        if (!strchr("huA", f->arguments[i].kind) && !words[i].p) return INVALID_ARGUMENT;
    /* A process that was forked has its parent's session, which is no use to it. */
    if (helper >= 0 && owner != getpid()) stop();
    if (helper < 0 && !starts) return UNINITIALIZED;
    if (helper < 0 && !start()) return UNKNOWN;
    code = exchange(number, words);
    if (code == SUCCESS) sessions += starts;
    if (code == SUCCESS && number == SHUTDOWN && --sessions <= 0) stop();
    return code;
}

static int ask(uint32_t number, const union word *words) {
    int code;
    pthread_mutex_lock(&turn);
    code = answer(number, words);
    pthread_mutex_unlock(&turn);
    return code;
}

const char *nvmlErrorString(int code) {
    for (size_t i = 0; i < sizeof TEXTS / sizeof *TEXTS; i++)
        if (TEXTS[i].code == code) return TEXTS[i].text;
    return "Unknown Error";
}
