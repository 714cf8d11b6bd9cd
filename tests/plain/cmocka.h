/*
 * The words of cmocka that the tests use, without cmocka: for the fuzz targets,
 * and for another processor's builds, where the library is not at hand.  The
 * first failure ends the program.
 */
#ifndef PAGEDKV_TESTS_PLAIN_CMOCKA_H
#define PAGEDKV_TESTS_PLAIN_CMOCKA_H

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

__attribute__((noreturn, format(printf, 3, 4))) static inline void
plain_fail(const char *file, int line, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fprintf(stderr, "%s:%d: ", file, line);
    vfprintf(stderr, format, args);
    fputc('\n', stderr);
    va_end(args);
    abort();
}

static inline void plain_equal(const char *file, int line, const char *what, long long found,
                               long long expected)
{
    if (found != expected) {
        plain_fail(file, line, "%s is %lld, expected %lld", what, found, expected);
    }
}

#define fail_msg(...) plain_fail(__FILE__, __LINE__, __VA_ARGS__)
#define print_message(...) printf(__VA_ARGS__)
#define assert_true(claim) ((claim) ? (void)0 : fail_msg("not true: %s", #claim))
#define assert_int_equal(found, expected) \
    plain_equal(__FILE__, __LINE__, #found, (long long)(found), (long long)(expected))
#define assert_non_null(pointer) assert_true((pointer) != NULL)
#define assert_string_equal(found, expected) assert_true(strcmp(found, expected) == 0)
#define assert_memory_equal(found, expected, n_bytes) \
    assert_true(memcmp(found, expected, n_bytes) == 0)
#define assert_return_code(found, unused) assert_true((found) >= 0 && (unused) == 0)
#define skip() return

struct CMUnitTest {
    const char *name;
    void (*run)(void **state);
};

#define cmocka_unit_test(function) {#function, function}

static inline int plain_run(const char *group, const struct CMUnitTest *tests, size_t n_tests)
{
    for (size_t i = 0; i < n_tests; i++) {
        void *state = NULL;
        tests[i].run(&state);
    }
    printf("%s: %zu tests passed\n", group, n_tests);
    return 0;
}

#define cmocka_run_group_tests_name(group, tests, setup, teardown) \
    plain_run(group, tests, sizeof(tests) / sizeof(tests)[0])

#endif
