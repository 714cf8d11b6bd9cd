/*
 * What the tokens of a request are, and the keys from which the content of their
 * K and V follows.  Requests of a trace with hash ids begin alike as far as their
 * ids do: there a token follows from its block's id, and its key from the chain
 * of ids up to and with its block.
 */
#ifndef PAGEDKV_CLI_PROMPTS_H
#define PAGEDKV_CLI_PROMPTS_H

#include "trace.h"

typedef struct prompts {
    const trace *trace;
    uint64_t     seed;
    uint64_t    *chains; /* [trace->n_hash_ids] key of each block; NULL: every request for itself */
} prompts;

/* shared: hash ids count.  An exit status; prompts_free() in any case. */
int  prompts_init(prompts *p, const trace *t, uint64_t seed, bool shared);
void prompts_free(prompts *p);

/* What prompts_init() allocates, in bytes. */
int64_t prompts_bytes(const trace *t, bool shared);

/* The key of one token's K and V. */
uint64_t prompts_key(const prompts *p, int64_t request, int64_t position);

/* Tokens [from, to) of a request into out[from .. to - 1]. */
void prompts_tokens(const prompts *p, int64_t request, int64_t from, int64_t to, int32_t *out);

#endif
