/*
 * Trace files: the first byte chooses the format and how many requests are
 * wanted, the rest is the file.  Either a failure with one error line and an
 * empty trace, or requests that hold what trace.h promises.
 */
#define _GNU_SOURCE /* memfd_create() */
#include "input.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cmocka.h>

#include "../cli/cli.h"
#include "../cli/trace.h"

enum { PATH_BYTES = 64 };

/* What is known of a format besides trace.h. */
typedef struct format_facts {
    const char *name;
    int64_t     n_headers;    /* lines that are no requests */
    int64_t     block_tokens; /* of a hash id, -1: the file says */
    bool        skips;        /* lines may be passed over */
    bool        is_document;
} format_facts;

static const format_facts facts[] = {
    {"auto", 0, 0, false, false},
    {"azure", 1, 0, false, false},
    {"mooncake", 0, 512, false, false},
    {"bailian", 0, 16, false, false},
    {"burstgpt", 1, 0, true, false},
    {"agentic", 0, -1, false, true},
    {"empty", 0, 0, false, false},
};
enum { N_FACTS = sizeof facts / sizeof *facts, N_NAMES = N_FACTS - 1 };

static const format_facts *facts_of(const trace *t)
{
    for (int i = 1; i < N_FACTS; i++) {
        if (strcmp(t->format, facts[i].name) == 0) {
            return &facts[i];
        }
    }
    abort();
}

/* A file in memory; `path` names it as long as it is open. */
static int open_file(const uint8_t *data, size_t size, char path[PATH_BYTES])
{
    int fd = memfd_create("trace", MFD_CLOEXEC);
    assert_true(fd >= 0);
    for (size_t done = 0; done < size;) {
        ssize_t wrote = write(fd, data + done, size - done);
        assert_true(wrote > 0);
        done += (size_t)wrote;
    }
    snprintf(path, PATH_BYTES, "/proc/self/fd/%d", fd);
    return fd;
}

static int read_quietly(const char *path, const char *format, int64_t max_requests, trace *out,
                        capture *printed)
{
    capture_begin(printed);
    int status = trace_read(path, format, max_requests, out);
    capture_end(printed);
    return status;
}

/* Lines with anything but blanks in them, counted anew. */
static int64_t count_lines(const uint8_t *data, size_t size)
{
    int64_t n = 0;
    bool    blank = true;
    for (size_t i = 0; i <= size; i++) {
        bool at_end = i == size || data[i] == '\n';
        bool is_cr = i < size && data[i] == '\r' && (i + 1 == size || data[i + 1] == '\n');
        if (at_end) {
            n += !blank;
            blank = true;
        } else if (data[i] != ' ' && data[i] != '\t' && !is_cr) {
            blank = false;
        }
    }
    return n;
}

static void check_request(const trace *t, int64_t i, const format_facts *f, int64_t *n_hashes)
{
    const trace_request *r = &t->requests[i];
    assert_true(r->prompt_tokens >= 1 && r->prompt_tokens <= INT32_MAX);
    assert_true(r->output_tokens >= 0 && r->output_tokens <= INT32_MAX);
    assert_true(i > 0 || r->arrival_ns == 0);
    if (f->is_document) {
        assert_true(r->line == 0 && (i == 0 || r->arrival_ns >= t->requests[i - 1].arrival_ns));
    } else {
        assert_true(r->line > (i > 0 ? t->requests[i - 1].line : 0));
    }
    if (t->hash_block_tokens > 0) {
        const int64_t n_whole = r->prompt_tokens / t->hash_block_tokens;
        const int64_t n_blocks = n_whole + (r->prompt_tokens % t->hash_block_tokens != 0);
        assert_true(r->n_hashes == n_blocks || (f->is_document && r->n_hashes == n_whole));
        assert_int_equal(r->first_hash, *n_hashes);
    } else {
        assert_int_equal(r->n_hashes, 0);
    }
    *n_hashes += r->n_hashes;
}

static void check_trace(const trace *t, const char *format, int64_t max_requests)
{
    const format_facts *f = facts_of(t);
    int64_t             n_hashes = 0;
    assert_true(max_requests == 0 || t->n_requests <= max_requests);
    assert_true(strcmp(format, "auto") == 0 || strcmp(t->format, format) == 0 ||
                strcmp(t->format, "empty") == 0);
    if (t->n_requests == 0) {
        assert_int_equal(t->hash_block_tokens, 0);
    } else if (f->block_tokens >= 0) {
        assert_int_equal(t->hash_block_tokens, f->block_tokens);
    } else {
        assert_true(t->hash_block_tokens >= 1 && t->hash_block_tokens <= INT32_MAX);
    }
    for (int64_t i = 0; i < t->n_requests; i++) {
        check_request(t, i, f, &n_hashes);
    }
    assert_int_equal(n_hashes, t->n_hash_ids);
    for (int64_t h = 0; h < n_hashes; h++) {
        assert_true(t->hash_ids[h] >= 0);
    }
}

/* Every line but headers is a request, where there are lines. */
static void check_count(const trace *t, int64_t n_lines)
{
    const format_facts *f = facts_of(t);
    if (f->is_document) {
        return;
    }
    assert_true(t->n_requests + f->n_headers <= n_lines);
    assert_true(f->skips || t->n_requests + f->n_headers == n_lines);
}

/* Any kind of reading; the whole file is read if max_requests is 0. */
static void check_reading(const uint8_t *data, size_t size, const char *path, const char *format,
                          int64_t max_requests)
{
    trace   t;
    capture printed;
    int     status = read_quietly(path, format, max_requests, &t, &printed);
    assert_true(printed.length[CAPTURED_OUT] == 0);
    if (status == CLI_OK) {
        assert_true(printed.length[CAPTURED_ERR] == 0);
        check_trace(&t, format, max_requests);
        if (max_requests == 0) {
            check_count(&t, count_lines(data, size));
        }
    } else {
        assert_int_equal(status, CLI_USAGE);
        assert_true(is_one_error_line(printed.text[CAPTURED_ERR]));
        assert_true(t.requests == NULL && t.hash_ids == NULL && t.n_requests == 0);
    }
    capture_free(&printed);
    trace_free(&t);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char  path[PATH_BYTES];
    input in = {data, size};
    int   choice = take_byte(&in);
    int   fd = open_file(in.at, in.left, path);
    check_reading(in.at, in.left, path, facts[choice % N_NAMES].name,
                  choice / N_NAMES % 4);
    assert_true(close(fd) == 0);
    return 0;
}
