/*
 * Threads: several on one pool with its sequences and its index, which take a
 * mutex of the caller's for every call that changes something, and none where all
 * only look; and threads whose pools are their own.  For the thread sanitizer.
 */
#include "seq_model.h"

#include <pthread.h>
#include <string.h>

enum { N_THREADS = 4, N_ROUNDS = 12, N_STEPS = 25, MAX_SEQS = 10 };

static const seq_shape SHAPE = {.n_pages = 60, .page_size = 16, .max_seqs = MAX_SEQS, .n_groups = 2,
                                .groups = {{0, 0}, {20, 6}}};

static int64_t draw(void *user, int64_t min, int64_t max)
{
    return rng_range(user, min, max);
}

static void run_together(void *(*run)(void *), void *const user[N_THREADS])
{
    pthread_t thread[N_THREADS];
    for (int i = 0; i < N_THREADS; i++) {
        assert_int_equal(pthread_create(&thread[i], NULL, run, user[i]), 0);
    }
    for (int i = 0; i < N_THREADS; i++) {
        void *result = NULL;
        assert_int_equal(pthread_join(thread[i], &result), 0);
        assert_true(result == user[i]);
    }
}

/* ---- one pool ------------------------------------------------------------------ */

typedef struct shared {
    seq_world         w;
    pthread_mutex_t   mutex;   /* the caller's: for calls that change something */
    pthread_barrier_t barrier; /* between rounds of writing and of looking */
    seq_step          step;    /* is reserved while they look, in every other round */
} shared;

typedef struct worker {
    shared *all;
    int     number;
    rng     random;
} worker;

/* What a thread sees of one sequence and of its plan in a group. */
static bool look_at(const shared *s, const pkv_seq *q, int32_t group)
{
    const seq_world *w = &s->w;
    int32_t          computed, scheduled, row, columns[3 * SEQ_PAGES], n_slices;
    int64_t          total = -1;
    pkv_seq_state    info = {.struct_size = sizeof info};
    pkv_batch        batch;
    pkv_slices       slices;
    if (pkv_seq_info(w->seqs, *q, &info, NULL) != PKV_OK ||
        pkv_seqs_batch(w->seqs, group, q, 1, &computed, &scheduled, &row, &batch, NULL) != PKV_OK ||
        row != info.row + group || computed + scheduled != info.n_tokens + info.n_reserved) {
        return false;
    }
    for (int64_t i = 0; i < info.n_pages; i++) {
        const int32_t page = info.pages[group * info.pages_stride + i];
        if (page >= 0 && pkv_pool_owners(w->pool, page) < 1) {
            return false;
        }
    }
    return pkv_slices_from_array(&slices, sizeof slices, columns, SEQ_PAGES, &n_slices) == PKV_OK &&
           pkv_plan(&batch, 0, &slices, &total, NULL) == PKV_OK && total == scheduled;
}

/* Calls that take everything const, beside those of the other threads. */
static bool look(const shared *s)
{
    const seq_world *w = &s->w;
    pkv_pool_counts  counts = {.struct_size = sizeof counts};
    bool             good = pkv_pool_stats(w->pool, &counts, NULL) == PKV_OK &&
                pkv_pool_check(w->pool, NULL) == PKV_OK &&
                pkv_seqs_check(w->seqs, 1, NULL) == PKV_OK;
    for (int i = 0; i < MAX_SEQS; i++) {
        for (int32_t g = 0; g < SHAPE.n_groups && w->seq[i].handle != 0; g++) {
            good = good && look_at(s, &w->seq[i].handle, g);
        }
    }
    return good;
}

static void write_some(worker *me)
{
    shared *s = me->all;
    for (int i = 0; i < N_STEPS; i++) {
        assert_int_equal(pthread_mutex_lock(&s->mutex), 0);
        s->w.user = &me->random;
        seq_world_step(&s->w);
        assert_int_equal(pthread_mutex_unlock(&s->mutex), 0);
    }
}

/* All that can go on, by a token. */
static bool reserve_all(shared *s)
{
    seq_step_init(&s->step);
    for (int i = 0; i < MAX_SEQS; i++) {
        if (s->w.seq[i].handle != 0) {
            seq_step_add(&s->w, &s->step, &s->w.seq[i], 1);
        }
    }
    return seq_step_reserve(&s->w, &s->step) == PKV_OK;
}

static void *share_one_pool(void *user)
{
    worker *me = user;
    bool    good = true;
    for (int round = 0; round < N_ROUNDS; round++) {
        write_some(me);
        pthread_barrier_wait(&me->all->barrier);
        const bool reserves = round % 2 == 1 && me->number == 0 && reserve_all(me->all);
        pthread_barrier_wait(&me->all->barrier);
        for (int i = 0; i < 5; i++) {
            good = good && look(me->all);
        }
        pthread_barrier_wait(&me->all->barrier);
        if (reserves) {
            seq_step_commit(&me->all->w, &me->all->step, 0);
        }
        pthread_barrier_wait(&me->all->barrier);
    }
    return good ? user : NULL;
}

static void test_one_pool(void **state)
{
    (void)state;
    static shared s;
    worker        workers[N_THREADS];
    void         *user[N_THREADS];
    for (int32_t a = 0; a < 3; a++) {
        seq_shape shape = SHAPE;
        shape.allocator = a;
        note_case("threads", (uint64_t)a, "one pool, allocator %d", a);
        seq_world_init(&s.w, &shape, draw, NULL);
        assert_int_equal(pthread_mutex_init(&s.mutex, NULL), 0);
        assert_int_equal(pthread_barrier_init(&s.barrier, NULL, N_THREADS), 0);
        for (int i = 0; i < N_THREADS; i++) {
            workers[i] = (worker){&s, i, {(uint64_t)(a * N_THREADS + i)}};
            user[i] = &workers[i];
        }
        run_together(share_one_pool, user);
        pthread_barrier_destroy(&s.barrier);
        pthread_mutex_destroy(&s.mutex);
        /* They found what others of them published. */
        assert_true(s.w.counts.n_commits > 0 && s.w.counts.n_published > 0 &&
                    s.w.counts.n_hits > 0);
        seq_world_free(&s.w);
    }
}

/* ---- pools of their own ---------------------------------------------------------- */

static void *use_own_pool(void *user)
{
    rng      *random = user;
    seq_world w;
    seq_shape shape = SHAPE;
    shape.allocator = (int32_t)(random->state % 3);
    shape.n_groups = (int32_t)(random->state % SEQ_GROUPS) + 1;
    seq_world_init(&w, &shape, draw, random);
    for (int i = 0; i < 600; i++) {
        seq_world_step(&w);
    }
    seq_world_free(&w);
    return user;
}

static void test_own_pools(void **state)
{
    (void)state;
    rng   random[N_THREADS];
    void *user[N_THREADS];
    note_case("threads", 0, "pools of their own");
    for (int i = 0; i < N_THREADS; i++) {
        random[i] = (rng){(uint64_t)i + 40};
        user[i] = &random[i];
    }
    run_together(use_own_pool, user);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_one_pool),
        cmocka_unit_test(test_own_pools),
    };
    return cmocka_run_group_tests_name("seq_threads", tests, NULL, NULL);
}
