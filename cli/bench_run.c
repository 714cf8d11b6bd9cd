/*
 * Rounds.  Machines drift by a third within minutes, so nothing is timed on its
 * own: each round runs every contender once, in an order of its own, and ratios
 * are taken inside a round.
 */
#include "bench_run.h"

#include <stdlib.h>
#include <string.h>

#include "cli.h"

enum { MIN_ROUNDS = 5, DEFAULT_ROUNDS = 41 };

uint64_t bench_random(uint64_t *state)
{
    uint64_t x = *state;
    x ^= x >> 12;
    x ^= x << 25;
    x ^= x >> 27;
    *state = x;
    return x * 0x2545f4914f6cdd1dU;
}

int64_t bench_random_below(uint64_t *state, int64_t n)
{
    return (int64_t)((bench_random(state) >> 1) % (uint64_t)n);
}

static void shuffle(int *order, int n, uint64_t *random)
{
    for (int i = 0; i < n; i++) {
        order[i] = i;
    }
    for (int i = n - 1; i > 0; i--) {
        int other = (int)bench_random_below(random, i + 1);
        int held = order[i];
        order[i] = order[other];
        order[other] = held;
    }
}

static int run_round(bench_job *job, const int *order, int round)
{
    for (int k = 0; k < job->n_contenders; k++) {
        int i = order[k];
        int status = job->prepare(job->ctx, i);
        if (status != CLI_OK) {
            return status;
        }
        job->own_ns = 0;
        int64_t start = cli_now_ns();
        status = job->run(job->ctx, i);
        int64_t end = cli_now_ns();
        if (status != CLI_OK) {
            return status;
        }
        if (round >= 0) {
            /* Ratios divide by this. */
            double ns = job->own_ns > 0 ? job->own_ns : (double)(end - start);
            job->ns[i][round] = ns > 0 ? ns : 1.0;
        } else if ((status = job->check(job->ctx, i)) != CLI_OK) {
            return status;
        }
    }
    return CLI_OK;
}

int bench_run(bench_job *job, int64_t rounds, int64_t end_ns)
{
    uint64_t random = 88172645463325252U;
    int      order[BENCH_MAX_CONTENDERS];
    int      at_least = rounds > 0 ? (int)rounds : MIN_ROUNDS;
    int      at_most = rounds > 0 ? (int)rounds : DEFAULT_ROUNDS;

    job->n_rounds = 0;
    for (int round = -1; round < at_most; round++) {
        if (round >= at_least && cli_now_ns() > end_ns) {
            break;
        }
        shuffle(order, job->n_contenders, &random);
        int status = run_round(job, order, round);
        if (status != CLI_OK) {
            return status;
        }
        job->n_rounds = round + 1;
    }
    return CLI_OK;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

double bench_quantile(const double *values, int n, double q)
{
    double sorted[BENCH_MAX_ROUNDS];

    memcpy(sorted, values, (size_t)n * sizeof sorted[0]);
    qsort(sorted, (size_t)n, sizeof sorted[0], compare_doubles);
    double place = q * (double)(n - 1);
    int    below = (int)place;
    int    above = below + 1 < n ? below + 1 : below;
    return sorted[below] + (place - (double)below) * (sorted[above] - sorted[below]);
}

double bench_ratio(const bench_job *job, int a, int b)
{
    double ratios[BENCH_MAX_ROUNDS];

    for (int round = 0; round < job->n_rounds; round++) {
        ratios[round] = job->ns[a][round] / job->ns[b][round];
    }
    return bench_quantile(ratios, job->n_rounds, 0.5);
}

int bench_fastest(const bench_job *job, int first, int end)
{
    int    best = first;
    double best_ns = bench_quantile(job->ns[first], job->n_rounds, 0.5);

    for (int i = first + 1; i < end; i++) {
        double ns = bench_quantile(job->ns[i], job->n_rounds, 0.5);
        if (ns < best_ns) {
            best = i;
            best_ns = ns;
        }
    }
    return best;
}
