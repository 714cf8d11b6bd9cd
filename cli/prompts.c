/* Tokens and keys: see prompts.h. */
#include "prompts.h"

#include <stdlib.h>

#include "cli.h"
#include "content.h"

int64_t prompts_bytes(const trace *t, bool shared)
{
    return shared ? t->n_hash_ids * (int64_t)sizeof(uint64_t) : 0;
}

int prompts_init(prompts *p, const trace *t, uint64_t seed, bool shared)
{
    *p = (prompts){.trace = t, .seed = seed};
    if (!shared || t->n_hash_ids == 0) {
        return CLI_OK;
    }
    p->chains = malloc((size_t)t->n_hash_ids * sizeof *p->chains);
    if (p->chains == NULL) {
        return cli_no_memory("the keys of the prompts");
    }
    for (int64_t i = 0; i < t->n_requests; i++) {
        const trace_request *r = &t->requests[i];
        uint64_t             chain = content_mix(~seed);
        for (int64_t b = r->first_hash; b < r->first_hash + r->n_hashes; b++) {
            chain = p->chains[b] = content_mix(chain + (uint64_t)t->hash_ids[b]);
        }
    }
    return CLI_OK;
}

void prompts_free(prompts *p)
{
    free(p->chains);
    *p = (prompts){0};
}

/* The index of the hash id that a token stands under; -1: it has none. */
static int64_t block_of(const prompts *p, const trace_request *r, int64_t position)
{
    if (p->chains == NULL || position >= r->prompt_tokens) {
        return -1;
    }
    const int64_t block = position / p->trace->hash_block_tokens;
    return block < r->n_hashes ? r->first_hash + block : -1;
}

static uint64_t own_key(const prompts *p, int64_t request)
{
    return p->seed * 0x9e3779b97f4a7c15u + (uint64_t)request;
}

uint64_t prompts_key(const prompts *p, int64_t request, int64_t position)
{
    const int64_t block = block_of(p, &p->trace->requests[request], position);
    return block >= 0 ? p->chains[block] : own_key(p, request);
}

void prompts_tokens(const prompts *p, int64_t request, int64_t from, int64_t to, int32_t *out)
{
    const trace_request *r = &p->trace->requests[request];
    for (int64_t i = from; i < to;) {
        const int64_t  block = block_of(p, r, i), size = p->trace->hash_block_tokens;
        const uint64_t id = block >= 0 ? (uint64_t)p->trace->hash_ids[block] : own_key(p, request);
        const int64_t  start = block >= 0 ? i / size * size : 0;
        int64_t        end = block >= 0 && start + size < to ? start + size : to;
        end = block >= 0 && end > r->prompt_tokens ? r->prompt_tokens : end;
        for (const uint64_t base = content_mix(id); i < end; i++) {
            out[i] = (int32_t)(content_mix(base + (uint64_t)(i - start)) >> 33);
        }
    }
}
