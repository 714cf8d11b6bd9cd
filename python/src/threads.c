/*
 * Threads of the bindings' own: a wheel with OpenMP would bring a second OpenMP
 * runtime into processes that have one (docs/adr/0009).  Workers sleep on a
 * condition; the caller takes parts too, so a worker that wakes late costs
 * nothing.  One call at a time has the workers; others run alone.
 */
#include <pthread.h>
#include <stdlib.h>

#include "core.h"

enum { MAX_WORKERS = 63, STACK_BYTES = 256 * 1024 };

static struct {
    pthread_mutex_t   busy; /* held by the call that has the workers */
    pthread_mutex_t   lock; /* guards what follows */
    pthread_cond_t    wake, done;
    pkv_parallel_body body;
    void             *ctx;
    int32_t           next, n_parts; /* parts from `next` on are not taken yet */
    int32_t           n_running;
    int32_t           n_workers;
    int32_t           n_threads;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER, .done = PTHREAD_COND_INITIALIZER, .n_threads = 1};

/* Takes parts while there are any; called and left with the lock held. */
static void take_parts(void)
{
    while (pool.next < pool.n_parts) {
        int32_t part = pool.next++;
        pool.n_running++;
        pthread_mutex_unlock(&pool.lock);
        pool.body(pool.ctx, part);
        pthread_mutex_lock(&pool.lock);
        pool.n_running--;
    }
}

static void *work(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        take_parts();
        if (pool.n_running == 0) {
            pthread_cond_signal(&pool.done);
        }
        pthread_cond_wait(&pool.wake, &pool.lock);
    }
    return NULL;
}

/* A child of fork() has none of the threads, and the locks as they were. */
static void forget_workers(void)
{
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.n_workers = 0;
    pool.n_parts = pool.next = pool.n_running = 0;
}

/* With the lock held.  Fewer workers than wished are no error. */
static void start_workers(int32_t wanted)
{
    static bool watches_fork;
    if (!watches_fork) {
        watches_fork = pthread_atfork(NULL, NULL, forget_workers) == 0;
    }
    pthread_attr_t attr;
    if (!watches_fork || pthread_attr_init(&attr) != 0) {
        return;
    }
    pthread_attr_setstacksize(&attr, STACK_BYTES);
    pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    pthread_t thread;
    while (pool.n_workers < wanted && pthread_create(&thread, &attr, work, NULL) == 0) {
        pool.n_workers++;
    }
    pthread_attr_destroy(&attr);
}

void pool_parallel_for(void *user, int32_t n_parts, pkv_parallel_body body, void *ctx)
{
    (void)user;
    if (n_parts < 2 || pthread_mutex_trylock(&pool.busy) != 0) {
        for (int32_t part = 0; part < n_parts; part++) {
            body(ctx, part);
        }
        return;
    }
    pthread_mutex_lock(&pool.lock);
    if (pool.n_workers < n_parts - 1) {
        start_workers(n_parts - 1);
    }
    pool.body = body;
    pool.ctx = ctx;
    pool.next = 0;
    pool.n_parts = n_parts;
    pthread_cond_broadcast(&pool.wake);
    take_parts();
    while (pool.n_running > 0) {
        pthread_cond_wait(&pool.done, &pool.lock);
    }
    pool.n_parts = pool.next = 0;
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&pool.busy);
}

int32_t pool_get_threads(void)
{
    return __atomic_load_n(&pool.n_threads, __ATOMIC_RELAXED);
}

void pool_set_threads(int32_t n)
{
    n = n < 1 ? 1 : n > MAX_WORKERS + 1 ? MAX_WORKERS + 1 : n;
    __atomic_store_n(&pool.n_threads, n, __ATOMIC_RELAXED);
}
