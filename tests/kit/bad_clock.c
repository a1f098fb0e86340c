/* A wall clock that was stepped, for one process and its children (LD_PRELOAD).
 *
 * BAD_CLOCK_STEP   seconds by which it is ahead of the machine's; other clocks are as they were
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/time.h>
#include <time.h>

#define REAL(call) ((__typeof__(&call))dlsym(RTLD_NEXT, #call))

static long step(void)
{
    const char *seconds = getenv("BAD_CLOCK_STEP");
    return seconds ? atol(seconds) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    int rc = REAL(clock_gettime)(clock, now);
    if (rc == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += step();
    return rc;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
    int rc = REAL(gettimeofday)(now, zone);
    now->tv_sec += step();
    return rc;
}

time_t time(time_t *now)
{
    time_t found = REAL(time)(NULL) + step();
    if (now)
        *now = found;
    return found;
}
