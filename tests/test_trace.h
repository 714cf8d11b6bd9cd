/*
 * Reading trace files in tests: what trace_read() gave and what it printed.
 * Files that include it define _POSIX_C_SOURCE.
 */
#ifndef PAGEDKV_TESTS_TEST_TRACE_H
#define PAGEDKV_TESTS_TEST_TRACE_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#include "../cli/cli.h"
#include "../cli/trace.h"

/* What a call of trace_read() gave and printed. */
typedef struct outcome {
    int   status;
    trace t;
    char  path[64];
    char  errors[1024];
} outcome;

/* trace_read() with standard error caught. */
static void read_path(const char *path, const char *format, int64_t max_requests, outcome *out)
{
    FILE *caught = tmpfile();
    assert_non_null(caught);
    int saved = dup(STDERR_FILENO);
    assert_true(saved >= 0 && dup2(fileno(caught), STDERR_FILENO) >= 0);
    out->status = trace_read(path, format, max_requests, &out->t);
    assert_true(dup2(saved, STDERR_FILENO) >= 0);
    close(saved);
    rewind(caught);
    size_t n = fread(out->errors, 1, sizeof out->errors - 1, caught);
    out->errors[n] = '\0';
    fclose(caught);
}

/* A new empty file; the caller closes and unlinks it. */
static int temporary_file(outcome *out)
{
    strcpy(out->path, "/tmp/pagedkv-test-XXXXXX");
    int fd = mkstemp(out->path);
    assert_true(fd >= 0);
    return fd;
}

static void read_bytes(const char *text, size_t length, const char *format, int64_t max_requests,
                       outcome *out)
{
    int fd = temporary_file(out);
    assert_int_equal(write(fd, text, length), (ssize_t)length);
    close(fd);
    read_path(out->path, format, max_requests, out);
    unlink(out->path);
}

static void read_good(const char *text, const char *format, int64_t max_requests, outcome *out)
{
    read_bytes(text, strlen(text), format, max_requests, out);
    assert_string_equal(out->errors, "");
    assert_int_equal(out->status, CLI_OK);
}

static void expect_error(const outcome *got, int64_t line, const char *reason)
{
    char expected[sizeof got->errors];
    snprintf(expected, sizeof expected, "pagedkv: %s:%d: %s\n", got->path, (int)line, reason);
    assert_string_equal(got->errors, expected);
    assert_int_equal(got->status, CLI_USAGE);
    assert_null(got->t.requests);
    assert_int_equal(got->t.n_requests, 0);
}

static void expect_request(const outcome *got, int64_t i, int64_t arrival_ns, int64_t prompt,
                           int64_t output)
{
    assert_true(i < got->t.n_requests);
    assert_int_equal(got->t.requests[i].arrival_ns, arrival_ns);
    assert_int_equal(got->t.requests[i].prompt_tokens, prompt);
    assert_int_equal(got->t.requests[i].output_tokens, output);
}

#endif
