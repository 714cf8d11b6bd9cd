/* What the numbers were taken on. */
#ifndef PAGEDKV_CLI_BENCH_MACHINE_H
#define PAGEDKV_CLI_BENCH_MACHINE_H

#include <stdint.h>

enum { BENCH_MAX_CPUS = 256 };

typedef struct bench_machine {
    char        cpu[128];     /* model name, "unknown" where the system does not say */
    int64_t     n_online;     /* processors */
    int64_t     memory_bytes; /* 0: unknown */
    int64_t     page_bytes;   /* of an ordinary page */
    const char *huge_pages;   /* the system's setting */
    int         n_cpus;       /* processors that this process may use; 0: unknown */
    int         cpus[BENCH_MAX_CPUS];
} bench_machine;

/* Called once, before any pinning. */
void bench_machine_read(bench_machine *machine);

/*
 * Pins OpenMP's first `threads` threads to a processor each, as engines do, and
 * leaves them awake: threads that share a processor measure the scheduler.  To
 * be called before every timed call, since OpenMP may have started new ones.
 * Does nothing for one thread, and where there are fewer processors.
 */
void bench_machine_pin(const bench_machine *machine, int threads);

#endif
