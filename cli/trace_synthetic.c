/*
 * A seeded chat trace for runs without a file.  Lengths follow the quantiles
 * of the Azure LLM inference trace 2023, conversation (AzurePublicDataset,
 * CC-BY 4.0; Patel et al., Splitwise, ISCA 2024), arrivals a Poisson process
 * of the same rate.  All in whole numbers, so that every machine makes the
 * same trace.
 */
#include "cli.h"
#include "trace.h"

enum { N_QUANTILES = 11 };

static const int64_t percents[N_QUANTILES] = {0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100};
static const int64_t prompt_tokens[N_QUANTILES] = {2,    29,   181,  207,  396,  1020,
                                                   1189, 2735, 4083, 4142, 14050};
static const int64_t output_tokens[N_QUANTILES] = {7,   16,  41,  54,  85,  129,
                                                   395, 424, 451, 601, 1000};
/* The exponential distribution, its tail cut, with a mean of 180 ms. */
static const int64_t gap_us[N_QUANTILES] = {0,      1749,   8926,   18334,  50061,  120617,
                                            241235, 400682, 521300, 801364, 1149393};

/* splitmix64 (Steele, Lea, Flood 2014). */
static uint64_t next_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

/* Draws a number: a straight line between one quantile and the next. */
static int64_t draw(uint64_t *state, const int64_t values[N_QUANTILES])
{
    /* 0 up to 100 percent with 20 binary places: products stay below 2^50. */
    const int64_t one_percent = 1 << 20;
    int64_t at = (int64_t)((next_random(state) >> 32) * 100 >> 12);
    int i = 0;
    while (at >= percents[i + 1] * one_percent) {
        i++;
    }
    int64_t width = (percents[i + 1] - percents[i]) * one_percent;
    return values[i] + (values[i + 1] - values[i]) * (at - percents[i] * one_percent) / width;
}

int trace_synthetic(uint64_t seed, int64_t n_requests, trace *out)
{
    *out = (trace){0};
    out->format = "synthetic";
    uint64_t state = seed;
    int64_t arrival_us = 0;
    for (int64_t i = 0; i < n_requests; i++) {
        trace_request request = {.arrival_ns = arrival_us * 1000};
        request.prompt_tokens = draw(&state, prompt_tokens);
        request.output_tokens = draw(&state, output_tokens);
        arrival_us += draw(&state, gap_us);
        if (!trace_add(out, &request)) {
            trace_free(out);
            return cli_no_memory("the synthetic trace");
        }
    }
    return CLI_OK;
}
