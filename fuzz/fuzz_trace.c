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

enum { PATH_BYTES = 64, BLOCK_TOKENS = 512 };

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

static void check_request(const trace *t, int64_t i, int64_t *n_hashes)
{
    const trace_request *r = &t->requests[i];
    assert_true(r->prompt_tokens >= 1 && r->prompt_tokens <= INT32_MAX);
    assert_true(r->output_tokens >= 0 && r->output_tokens <= INT32_MAX);
    assert_true(i > 0 || r->arrival_ns == 0);
    assert_true(r->line > (i > 0 ? t->requests[i - 1].line : 0));
    if (r->n_hashes > 0) {
        assert_int_equal(r->first_hash, *n_hashes);
        assert_int_equal(r->n_hashes, (r->prompt_tokens + BLOCK_TOKENS - 1) / BLOCK_TOKENS);
    }
    for (int64_t h = r->first_hash; h < r->first_hash + r->n_hashes; h++) {
        assert_true(t->hash_ids[h] >= 0);
    }
    *n_hashes += r->n_hashes;
}

static void check_trace(const trace *t, const char *format, int64_t max_requests)
{
    const bool has_hashes = t->hash_block_tokens != 0;
    int64_t    n_hashes = 0;
    assert_true(max_requests == 0 || t->n_requests <= max_requests);
    assert_true(strcmp(format, "auto") == 0 || strcmp(t->format, format) == 0 ||
                strcmp(t->format, "empty") == 0);
    for (int64_t i = 0; i < t->n_requests; i++) {
        check_request(t, i, &n_hashes);
        assert_int_equal(t->requests[i].n_hashes > 0, has_hashes);
    }
    assert_int_equal(n_hashes, t->n_hash_ids);
    assert_true(!has_hashes || t->hash_block_tokens == BLOCK_TOKENS);
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
        int64_t n_headers = strcmp(t.format, "azure") == 0 ? 1 : 0;
        if (max_requests == 0) {
            assert_int_equal(t.n_requests + n_headers, count_lines(data, size));
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
    static const char *const formats[] = {"auto", "azure", "mooncake", "bailian"};
    char  path[PATH_BYTES];
    input in = {data, size};
    int   choice = take_byte(&in);
    int   fd = open_file(in.at, in.left, path);
    check_reading(in.at, in.left, path, formats[choice % 4], choice / 4 % 4);
    assert_true(close(fd) == 0);
    return 0;
}
