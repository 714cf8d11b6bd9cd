/* See simt.h: blocks, barriers and shuffles. */
#include "simt.h"

#include <pthread.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { PARTS = 3, LOW = 0, HIGH = 1, MASK = 2 };

/*
 * What a lane hands over: 32 bits each, and above them which shuffle it was.  Two of each,
 * since a lane may come to the next shuffle before the others have left this one.
 */
typedef struct handed {
    uint64_t part[2][PARTS];
} handed;

typedef struct block {
    pthread_barrier_t  barrier;
    const char        *at[2][SIMT_THREADS]; /* the barrier that each came to; NULL: the end */
    handed             lane[SIMT_THREADS];
    const simt_kernel *kernel;
    const void        *job;
    void              *shared;
    uint32_t           block, n_blocks;
    int                failed;
    char               why[200];
} block;

typedef struct thread {
    pthread_t handle;
    block    *block;
    uint32_t  index;
} thread;

double                   simt_patience_s = 20;
_Thread_local simt_index threadIdx;

static _Thread_local block   *here;
static _Thread_local uint32_t n_barriers, n_shuffles; /* shuffles: since the last barrier */

/*
 * Nothing here but the barrier itself may order what a kernel's threads do: a race must stay
 * one.  So all that threads tell each other beside it is relaxed.
 */
static void put(uint64_t *to, uint64_t x)
{
    __atomic_store_n(to, x, __ATOMIC_RELAXED);
}

static uint64_t get(const uint64_t *from)
{
    return __atomic_load_n(from, __ATOMIC_RELAXED);
}

static bool has_failed(const block *b)
{
    return __atomic_load_n(&b->failed, __ATOMIC_RELAXED) != 0;
}

/* The first reason stays. */
static void fail(block *b, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void fail(block *b, const char *format, ...)
{
    int none = 0;
    if (__atomic_compare_exchange_n(&b->failed, &none, 1, false, __ATOMIC_RELAXED,
                                    __ATOMIC_RELAXED)) {
        va_list args;
        va_start(args, format);
        vsnprintf(b->why, sizeof b->why, format, args);
        va_end(args);
    }
}

static const char *name_of(const char *where)
{
    return where != NULL ? where : "the end";
}

/* Waits for all threads of the block: where has thread `i` come to? */
static const char *meet(const char *where, const char *const **all)
{
    const char **at = here->at[n_barriers++ % 2];
    n_shuffles = 0;
    __atomic_store_n(&at[threadIdx.x], where, __ATOMIC_RELAXED);
    pthread_barrier_wait(&here->barrier);
    *all = at;
    return __atomic_load_n(&at[0], __ATOMIC_RELAXED);
}

/* Until all have come to the end: the others may still wait at barriers. */
static void end_thread(void)
{
    for (bool all_ended = false; !all_ended;) {
        const char *const *at;
        const char        *first = meet(NULL, &at);
        if (first != NULL) {
            fail(here, "thread %u is at %s, thread 0 at %s", threadIdx.x, name_of(NULL), first);
        }
        all_ended = true;
        for (uint32_t i = 0; i < SIMT_THREADS; i++) {
            all_ended = all_ended && __atomic_load_n(&at[i], __ATOMIC_RELAXED) == NULL;
        }
    }
}

static _Noreturn void leave_kernel(void)
{
    end_thread();
    pthread_exit(NULL);
}

void simt_sync(const char *where)
{
    const char *const *at;
    const char        *first = meet(where, &at);
    if (first != where) {
        fail(here, "thread %u is at %s, thread 0 at %s", threadIdx.x, where, name_of(first));
    }
    if (has_failed(here)) {
        leave_kernel();
    }
}

static double seconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* Waits until the lane hands over the part of this shuffle. */
static uint32_t take(const char *where, uint32_t lane, int part, uint32_t which)
{
    const uint64_t *from = &here->lane[(threadIdx.x & ~31u) + lane].part[which % 2][part];
    const double    begin = seconds();
    uint64_t        found = get(from);
    while (found >> 32 != which) {
        if (!has_failed(here) && seconds() - begin > simt_patience_s) {
            fail(here, "thread %u waits at %s for lane %u", threadIdx.x, where, lane);
        }
        if (has_failed(here)) {
            leave_kernel();
        }
        sched_yield();
        found = get(from);
    }
    return (uint32_t)found;
}

uint64_t simt_shuffle(const char *where, uint32_t mask, uint64_t x, uint32_t from)
{
    const uint32_t own = threadIdx.x & 31;
    /* A thread counts from 1 after each barrier, as all lanes of a mask must. */
    const uint32_t which = n_barriers << 16 | ++n_shuffles;
    const uint64_t tag = (uint64_t)which << 32;
    uint64_t      *part = here->lane[threadIdx.x].part[which % 2];
    from = from < 32 ? from : own;
    put(&part[LOW], tag | (uint32_t)x);
    put(&part[HIGH], tag | x >> 32);
    put(&part[MASK], tag | mask);
    if ((mask >> own & 1) == 0 || (mask >> from & 1) == 0) {
        fail(here, "thread %u at %s: lane %u is not of mask %x", threadIdx.x, where,
             (mask >> own & 1) == 0 ? own : from, mask);
        leave_kernel();
    }
    for (uint32_t lane = 0; lane < 32; lane++) {
        if ((mask >> lane & 1) != 0 && take(where, lane, MASK, which) != mask) {
            fail(here, "thread %u at %s: lane %u names another mask", threadIdx.x, where, lane);
            leave_kernel();
        }
    }
    const uint64_t high = take(where, from, HIGH, which);
    return high << 32 | take(where, from, LOW, which);
}

/* ---- grids -------------------------------------------------------------------------- */

static void *run_thread(void *arg)
{
    const thread *t = arg;
    here = t->block;
    threadIdx.x = t->index;
    n_barriers = n_shuffles = 0;
    here->kernel->body(here->job, here->block, here->n_blocks, here->shared);
    end_thread();
    return NULL;
}

static void *allocate(size_t n_bytes, int garbage)
{
    void *memory = NULL;
    if (posix_memalign(&memory, 64, n_bytes) != 0) {
        abort();
    }
    memset(memory, garbage, n_bytes);
    return memory;
}

static void start_block(block *b, thread *threads)
{
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    pthread_attr_setstacksize(&attr, 256 << 10);
    pthread_barrier_init(&b->barrier, NULL, SIMT_THREADS);
    for (uint32_t i = 0; i < SIMT_THREADS; i++) {
        threads[i].block = b;
        threads[i].index = i;
        if (pthread_create(&threads[i].handle, &attr, run_thread, &threads[i]) != 0) {
            abort(); /* the others wait for it */
        }
    }
    pthread_attr_destroy(&attr);
}

bool simt_run(const simt_kernel *kernel, const void *job, uint32_t n_blocks, char *why,
              size_t why_bytes)
{
    block  *blocks = allocate(n_blocks * sizeof *blocks, 0);
    thread *threads = allocate(n_blocks * SIMT_THREADS * sizeof *threads, 0);
    bool    failed = false;
    for (uint32_t i = 0; i < n_blocks; i++) {
        blocks[i].kernel = kernel;
        blocks[i].job = job;
        blocks[i].shared = allocate(kernel->shared_bytes, 0xa5);
        blocks[i].block = i;
        blocks[i].n_blocks = n_blocks;
        start_block(&blocks[i], threads + (size_t)i * SIMT_THREADS);
    }
    for (uint32_t i = 0; i < n_blocks * SIMT_THREADS; i++) {
        pthread_join(threads[i].handle, NULL);
    }
    for (uint32_t i = 0; i < n_blocks; i++) {
        if (blocks[i].failed && !failed) {
            failed = true;
            snprintf(why, why_bytes, "block %u, %s", i, blocks[i].why);
        }
        pthread_barrier_destroy(&blocks[i].barrier);
        free(blocks[i].shared);
    }
    free(threads);
    free(blocks);
    return !failed;
}
