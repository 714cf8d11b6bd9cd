/* Reads trace files: lines or all of it, the choice of the format, and the place of an error. */
#define _POSIX_C_SOURCE 200809L

#include "trace.h"
#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A document needs some ten times its size while it is read; the largest published has 4 MiB. */
enum { MAX_LINE_BYTES = 16 << 20, MAX_DOCUMENT_BYTES = 256 << 20, FIRST_BUFFER_BYTES = 1 << 18 };

/* Formats that are read.  One with a narrower recogniser stands before a wider one. */
static const trace_format *const formats[] = {&trace_format_azure, &trace_format_burstgpt,
                                              &trace_format_bailian, &trace_format_agentic,
                                              &trace_format_mooncake};
enum { N_FORMATS = sizeof formats / sizeof *formats };

#define FORMAT_NAMES "auto, azure, burstgpt, mooncake, bailian, agentic"

/* ---- the trace ----------------------------------------------------------- */

bool trace_reserve(void **items, int64_t count, int64_t *capacity, size_t item_bytes)
{
    if (count < *capacity) {
        return true;
    }
    int64_t wanted = *capacity == 0 ? 1024 : *capacity * 2;
    if ((uint64_t)wanted > SIZE_MAX / 2 / item_bytes) {
        return false;
    }
    void *grown = realloc(*items, (size_t)wanted * item_bytes);
    if (grown == NULL) {
        return false;
    }
    *items = grown;
    *capacity = wanted;
    return true;
}

bool trace_add(trace *t, const trace_request *request)
{
    void *items = t->requests;
    if (!trace_reserve(&items, t->n_requests, &t->capacity, sizeof *request)) {
        return false;
    }
    t->requests = items;
    t->requests[t->n_requests++] = *request;
    return true;
}

bool trace_add_hash(trace *t, int64_t hash_id)
{
    void *items = t->hash_ids;
    if (!trace_reserve(&items, t->n_hash_ids, &t->hash_capacity, sizeof hash_id)) {
        return false;
    }
    t->hash_ids = items;
    t->hash_ids[t->n_hash_ids++] = hash_id;
    return true;
}

void trace_free(trace *t)
{
    free(t->requests);
    free(t->hash_ids);
    *t = (trace){0};
}

/* ---- lines --------------------------------------------------------------- */

/* A file by lines.  Unread bytes stand in data[begin, end). */
typedef struct line_reader {
    int    fd;
    char  *data;
    size_t begin;
    size_t end;
    size_t capacity;
    bool   at_end;
} line_reader;

/* Makes room behind the unread bytes and reads once.  NULL, or what went wrong. */
static const char *fill(line_reader *reader)
{
    if (reader->begin > 0) {
        memmove(reader->data, reader->data + reader->begin, reader->end - reader->begin);
        reader->end -= reader->begin;
        reader->begin = 0;
    }
    if (reader->end == reader->capacity) {
        char *grown = realloc(reader->data, reader->capacity * 2);
        if (grown == NULL) {
            return TRACE_OUT_OF_MEMORY;
        }
        reader->data = grown;
        reader->capacity *= 2;
    }
    ssize_t got;
    do {
        got = read(reader->fd, reader->data + reader->end, reader->capacity - reader->end);
    } while (got < 0 && errno == EINTR);
    if (got < 0) {
        return strerror(errno);
    }
    reader->at_end = got == 0;
    reader->end += (size_t)got;
    return NULL;
}

/*
 * The next line without its end.  NULL, or what went wrong; *line is NULL
 * behind the last line, and where it is not a line that is wrong.
 */
static const char *next_line(line_reader *reader, const char **line, size_t *length)
{
    size_t searched = 0;
    char *newline = NULL;
    *line = NULL;
    for (;;) {
        size_t unread = reader->end - reader->begin;
        char *start = reader->data + reader->begin;
        newline = unread > searched ? memchr(start + searched, '\n', unread - searched) : NULL;
        *length = newline != NULL ? (size_t)(newline - start) : unread;
        if (*length > MAX_LINE_BYTES) {
            *line = start;
            return "line longer than 16 MiB";
        }
        if (newline != NULL || reader->at_end) {
            break;
        }
        searched = unread;
        const char *problem = fill(reader);
        if (problem != NULL) {
            return problem;
        }
    }
    if (newline == NULL && *length == 0) {
        return NULL;
    }
    *line = reader->data + reader->begin;
    reader->begin += *length + (newline != NULL);
    if (*length > 0 && (*line)[*length - 1] == '\r') {
        *length -= 1;
    }
    return NULL;
}

static bool is_blank(const char *line, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        if (line[i] != ' ' && line[i] != '\t') {
            return false;
        }
    }
    return true;
}

/* ---- formats ------------------------------------------------------------- */

/* *out is NULL for "auto".  Exit status. */
static int find_format(const char *name, const trace_format **out)
{
    *out = NULL;
    if (strcmp(name, "auto") == 0) {
        return CLI_OK;
    }
    for (int i = 0; i < N_FORMATS; i++) {
        if (strcmp(name, formats[i]->name) == 0) {
            *out = formats[i];
            return CLI_OK;
        }
    }
    return cli_fail(CLI_USAGE, "unknown format \"%.60s\" (known: " FORMAT_NAMES ")", name);
}

static const trace_format *recognise(const char *line, size_t length)
{
    for (int i = 0; i < N_FORMATS; i++) {
        if (formats[i]->recognise(line, length)) {
            return formats[i];
        }
    }
    return NULL;
}

/* Hands one line to its format, NULL if it is of none.  NULL, or what is wrong. */
static const char *take_line(trace *t, const trace_format *format, const char *line,
                             size_t length, int64_t line_index)
{
    if (memchr(line, '\0', length) != NULL) {
        return "a NUL byte: this is not a text file";
    }
    if (format == NULL) {
        return "not the first line of a known trace format (known: " FORMAT_NAMES ")";
    }
    t->format = format->name;
    return format->parse_line(t, line, length, line_index);
}

/* ---- reading ------------------------------------------------------------- */

static int status_of(const char *problem)
{
    return strcmp(problem, TRACE_OUT_OF_MEMORY) == 0 ? CLI_EXHAUSTED : CLI_USAGE;
}

/* Reads what begins at the next unread byte, in that line, as one document. */
static int read_document(line_reader *reader, const char *path, const trace_format *format,
                         int64_t max_requests, int64_t line, trace *out)
{
    const char *problem = NULL;
    while (problem == NULL && !reader->at_end &&
           reader->end - reader->begin <= MAX_DOCUMENT_BYTES) {
        problem = fill(reader);
    }
    if (problem != NULL) {
        return cli_fail(status_of(problem), "%s: %s", path, problem);
    }
    trace_place where = {.line = 1};
    size_t length = reader->end - reader->begin;
    out->format = format->name;
    problem = length > MAX_DOCUMENT_BYTES
                  ? "document larger than 256 MiB"
                  : format->parse_document(out, reader->data + reader->begin, length,
                                           max_requests, &where);
    if (problem == NULL) {
        return CLI_OK;
    }
    line += where.line - 1;
    if (where.request == 0) {
        return cli_fail(status_of(problem), "%s:%" PRId64 ": %s", path, line, problem);
    }
    return cli_fail(status_of(problem), "%s:%" PRId64 ": request %" PRId64 ": %s", path, line,
                    where.request, problem);
}

/* format is NULL if the first line that is not blank decides.  Exit status. */
static int read_lines(line_reader *reader, const char *path, const trace_format *format,
                      int64_t max_requests, trace *out)
{
    int64_t line_index = 0;
    for (int64_t number = 1; max_requests == 0 || out->n_requests < max_requests; number++) {
        const char *line;
        size_t length;
        const char *problem = next_line(reader, &line, &length);
        if (line == NULL) {
            return problem == NULL ? CLI_OK : cli_fail(status_of(problem), "%s: %s", path, problem);
        }
        if (is_blank(line, length) && problem == NULL) {
            continue;
        }
        format = format == NULL ? recognise(line, length) : format;
        if (format != NULL && format->parse_document != NULL) {
            reader->begin = (size_t)(line - reader->data);
            return read_document(reader, path, format, max_requests, number, out);
        }
        int64_t n_before = out->n_requests;
        if (problem == NULL) {
            problem = take_line(out, format, line, length, line_index++);
        }
        if (out->n_requests > n_before) {
            out->requests[n_before].line = number;
        }
        if (problem != NULL) {
            return cli_fail(status_of(problem), "%s:%" PRId64 ": %s", path, number, problem);
        }
    }
    return CLI_OK;
}

/* Parsers store the time as it stands in the file; the trace starts at 0. */
static void start_at_zero(trace *t)
{
    int64_t first_ns = t->n_requests > 0 ? t->requests[0].arrival_ns : 0;
    for (int64_t i = 0; i < t->n_requests; i++) {
        t->requests[i].arrival_ns -= first_ns;
    }
}

int trace_read(const char *path, const char *format, int64_t max_requests, trace *out)
{
    *out = (trace){0};
    out->format = "empty";
    const trace_format *chosen;
    int status = find_format(format, &chosen);
    if (status != CLI_OK) {
        return status;
    }
    line_reader reader = {.fd = open(path, O_RDONLY | O_CLOEXEC), .capacity = FIRST_BUFFER_BYTES};
    if (reader.fd < 0) {
        return cli_fail(CLI_USAGE, "%s: %s", path, strerror(errno));
    }
    reader.data = malloc(reader.capacity);
    status = reader.data == NULL ? cli_no_memory("reading the trace")
                                 : read_lines(&reader, path, chosen, max_requests, out);
    free(reader.data);
    close(reader.fd);
    if (status != CLI_OK) {
        trace_free(out);
        return status;
    }
    start_at_zero(out);
    return CLI_OK;
}
