/*
 * Request traces: what arrives, and how long its prompt and its answer are.
 * One parser per format; each turns one line into one request.
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
    int64_t n_hashes;      /* 0 where the format has none */
    int64_t line;          /* in its file, from 1; 0: of no file */
} trace_request;

typedef struct trace {
    trace_request *requests; /* in file order */
    int64_t        n_requests;
    int64_t        capacity;
    int64_t       *hash_ids; /* of all requests, one after another */
    int64_t        n_hash_ids;
    int64_t        hash_capacity;
    int64_t        hash_block_tokens; /* tokens a hash id stands for, 0: none */
    const char    *format;            /* name of the format, static */
} trace;

/*
 * Reads a trace file.  format is a name or "auto"; at most max_requests are
 * kept (0: all) and lines behind them are not read.  An empty file is an empty
 * trace.  Returns an exit status; an error has printed one line
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

/*
 * One format.  parse_line gets a line without its end (a '\r' is gone too) that
 * is not blank, adds at most one request, and returns NULL, or static text that
 * says what is wrong with the line.  It stores the time as the line has it:
 * trace_read() counts from the first request afterwards.
 */
typedef struct trace_format {
    const char *name;
    /* Does this first non-blank line open a trace of this format? */
    bool (*recognise)(const char *line, size_t length);
    /* line_index counts the non-blank lines from 0. */
    const char *(*parse_line)(trace *t, const char *line, size_t length, int64_t line_index);
} trace_format;

extern const trace_format trace_format_azure;
extern const trace_format trace_format_mooncake;

/* What parsers may answer beside words of their own. */
#define TRACE_OUT_OF_MEMORY "out of memory"
#define TRACE_EMPTY_PROMPT "prompt of 0 tokens: nothing to schedule"

#endif
