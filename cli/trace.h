/*
 * Request traces: what arrives, and how long its prompt and its answer are.
 * One parser per format; each turns one line into one request, or one document
 * into all of them.
 */
#ifndef PAGEDKV_CLI_TRACE_H
#define PAGEDKV_CLI_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct trace_request {
    int64_t arrival_ns;    /* since the first request of the trace; may be negative */
    int64_t prompt_tokens; /* >= 1 */
    int64_t output_tokens; /* >= 0 */
    int64_t first_hash;    /* index into trace.hash_ids */
    int64_t n_hashes;      /* of its prompt's first blocks; 0 where the format has none */
    int64_t line;          /* in its file, from 1; 0: not known */
} trace_request;

/*
 * Hash id i of a request stands for tokens [i * hash_block_tokens, (i + 1) *
 * hash_block_tokens) of its prompt, as far as the prompt goes.  Two prompts are
 * the same up to where their ids, from the first on, are the same.  Tokens behind
 * the block of the last id have no id: nothing is known to share them.
 */
typedef struct trace {
    trace_request *requests; /* in file order; those of a document in order of time */
    int64_t        n_requests;
    int64_t        capacity;
    int64_t       *hash_ids; /* of all requests, one after another */
    int64_t        n_hash_ids;
    int64_t        hash_capacity;
    int64_t        hash_block_tokens; /* tokens a hash id stands for, 0: none */
    int64_t        n_columns;         /* of a CSV with more than one header: its parser's */
    const char    *format;            /* name of the format, static */
} trace;

/*
 * Reads a trace file.  format is a name or "auto"; at most max_requests are
 * kept (0: all) and what stands behind them is not checked.  An empty file is an
 * empty trace.  Returns an exit status; an error has printed one line
 * "pagedkv: file:line: what is wrong".  On failure *out is empty.
 */
int trace_read(const char *path, const char *format, int64_t max_requests, trace *out);

/* A seeded chat trace: lengths by the quantiles of a public one.  Exit status. */
int trace_synthetic(uint64_t seed, int64_t n_requests, trace *out);

/* Frees what the trace owns and clears it. */
void trace_free(trace *t);

/* ---- for parsers --------------------------------------------------------- */

/* Appends; false if memory ran out. */
bool trace_add(trace *t, const trace_request *request);
bool trace_add_hash(trace *t, int64_t hash_id);

/* Makes room for one more item of an array; false if memory ran out. */
bool trace_reserve(void **items, int64_t count, int64_t *capacity, size_t item_bytes);

/* Times in seconds are no larger: 285 years, whose nanoseconds fit 64 bits. */
#define TRACE_MAX_SECONDS INT64_C(9000000000)

/* Where in a document something is wrong. */
typedef struct trace_place {
    int64_t line;    /* of the document, from 1 */
    int64_t request; /* from 1, as they stand in the document; 0: in none */
} trace_place;

/*
 * One format, by lines or as a document.  A parser returns NULL, or static text
 * that says what is wrong.  It stores the time as the file has it: trace_read()
 * counts from the first request afterwards.
 */
typedef struct trace_format {
    const char *name;
    /* Does this first non-blank line, or what fits of it, open a trace of this format? */
    bool (*recognise)(const char *line, size_t length);
    /*
     * By lines, else NULL: gets a line without its end (a '\r' is gone too) that is
     * not blank, and adds at most one request.  line_index counts such lines from 0.
     */
    const char *(*parse_line)(trace *t, const char *line, size_t length, int64_t line_index);
    /* As a document, else NULL: gets it all and adds its first max_requests (0: all). */
    const char *(*parse_document)(trace *t, const char *text, size_t length,
                                  int64_t max_requests, trace_place *where);
} trace_format;

extern const trace_format trace_format_agentic;
extern const trace_format trace_format_azure;
extern const trace_format trace_format_bailian;
extern const trace_format trace_format_burstgpt;
extern const trace_format trace_format_mooncake;

/* What parsers may answer beside words of their own. */
#define TRACE_OUT_OF_MEMORY "out of memory"
#define TRACE_EMPTY_PROMPT "prompt of 0 tokens: nothing to schedule"

#endif
