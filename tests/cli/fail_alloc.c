/*
 * Preloaded into the program: makes its FAIL_AT-th allocation fail, and every
 * one behind it if FAIL_REST is set.  Only calls that come from the program
 * itself or from jansson count: a C library's or thread runtime's own are not
 * ours to survive.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t n, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);

static atomic_long n_calls;

static bool ours(const void *caller)
{
    static const char program[] = "/pagedkv", library[] = "libjansson";
    Dl_info           info;
    if (dladdr(caller, &info) == 0 || info.dli_fname == NULL) {
        return false;
    }
    size_t length = strlen(info.dli_fname);
    bool   is_program = length >= sizeof program - 1 &&
                      strcmp(info.dli_fname + length - (sizeof program - 1), program) == 0;
    return is_program || strcmp(info.dli_fname, "pagedkv") == 0 ||
           strstr(info.dli_fname, library) != NULL;
}

static bool must_fail(const void *caller)
{
    const char *at = getenv("FAIL_AT");
    if (at == NULL || !ours(caller)) {
        return false;
    }
    long n = atomic_fetch_add(&n_calls, 1) + 1, fail = strtol(at, NULL, 10);
    bool failing = n == fail || (n > fail && getenv("FAIL_REST") != NULL);
    if (failing) {
        errno = ENOMEM;
    }
    return failing;
}

void *malloc(size_t bytes)
{
    return must_fail(__builtin_return_address(0)) ? NULL : __libc_malloc(bytes);
}

void *calloc(size_t n, size_t bytes)
{
    return must_fail(__builtin_return_address(0)) ? NULL : __libc_calloc(n, bytes);
}

void *realloc(void *old, size_t bytes)
{
    return must_fail(__builtin_return_address(0)) ? NULL : __libc_realloc(old, bytes);
}

void *aligned_alloc(size_t align, size_t bytes)
{
    return must_fail(__builtin_return_address(0)) ? NULL : memalign(align, bytes);
}
