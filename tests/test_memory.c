/* Memory for caches, with a system that gives and one that refuses: mmap() is wrapped here. */
#include "support.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>

/* The link renames the library's mmap() to __wrap_mmap() and keeps the real one. */
void *__real_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);
void *__wrap_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset);

static bool system_refuses;

void *__wrap_mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)
{
    if (system_refuses) {
        errno = ENOMEM;
        return MAP_FAILED;
    }
    return __real_mmap(addr, length, prot, flags, fd, offset);
}

static pkv_memory fresh(void)
{
    pkv_memory m;
    memset(&m, 0xAB, sizeof m);
    m.struct_size = sizeof m;
    return m;
}

static void test_aligned_and_zeroed(void **state)
{
    (void)state;
    static const uint64_t sizes[] = {1, 63, 4096, 4097, 1 << 20, 5000000};
    for (size_t i = 0; i < 12; i++) {
        pkv_memory m = fresh();
        uint64_t size_bytes = sizes[i / 2];
        uint32_t flags = i % 2 == 0 ? 0 : PKV_MEMORY_HUGE_PAGES;
        assert_int_equal(pkv_memory_alloc(&m, size_bytes, flags), PKV_OK);
        assert_int_equal((uintptr_t)m.data % 64, 0);
        assert_true(m.size_bytes >= size_bytes);
        assert_int_equal(m.flags & ~flags, 0);
        const unsigned char *bytes = m.data;
        for (uint64_t b = 0; b < m.size_bytes; b++) {
            if (bytes[b] != 0) {
                fail_msg("byte %llu of %llu is not zero", (unsigned long long)b,
                         (unsigned long long)m.size_bytes);
            }
        }
        memset(m.data, 0x5A, m.size_bytes); /* all of it is ours */
        pkv_memory_free(&m);
        assert_null(m.data);
        assert_int_equal(m.size_bytes, 0);
        pkv_memory_free(&m); /* a cleared one */
    }
    pkv_memory_free(NULL);
}

static void refuse(uint64_t size_bytes, uint32_t flags, pkv_status code)
{
    pkv_memory m = fresh();
    const pkv_memory untouched = m;
    errno = 0;
    assert_int_equal(pkv_memory_alloc(&m, size_bytes, flags), code);
    assert_memory_equal(&m, &untouched, sizeof m);
    assert_int_equal(errno, 0); /* no function touches errno */
}

static void test_refusals(void **state)
{
    (void)state;
    refuse(0, 0, PKV_E_INVALID);
    refuse(4096, 2, PKV_E_UNSUPPORTED);
    refuse(UINT64_MAX, 0, PKV_E_NO_MEMORY);
    refuse(UINT64_MAX - 4096, PKV_MEMORY_HUGE_PAGES, PKV_E_NO_MEMORY);
    refuse((uint64_t)1 << 63, 0, PKV_E_NO_MEMORY);
    refuse((uint64_t)1 << 62, 0, PKV_E_NO_MEMORY);
    assert_int_equal(pkv_memory_alloc(NULL, 4096, 0), PKV_E_INVALID);
    pkv_memory m = fresh();
    m.struct_size = sizeof m - 1;
    assert_int_equal(pkv_memory_alloc(&m, 4096, 0), PKV_E_UNSUPPORTED);
}

static void test_a_system_that_refuses(void **state)
{
    (void)state;
    system_refuses = true;
    refuse(4096, 0, PKV_E_NO_MEMORY);
    refuse(4096, PKV_MEMORY_HUGE_PAGES, PKV_E_NO_MEMORY);
    system_refuses = false;
    pkv_memory m = fresh();
    assert_int_equal(pkv_memory_alloc(&m, 4096, 0), PKV_OK);
    pkv_memory_free(&m);
}

static void test_success_leaves_errno(void **state)
{
    (void)state;
    errno = EDOM;
    pkv_memory m = fresh();
    assert_int_equal(pkv_memory_alloc(&m, 1 << 20, PKV_MEMORY_HUGE_PAGES), PKV_OK);
    pkv_memory_free(&m);
    m = fresh();
    assert_int_equal(pkv_memory_alloc(&m, 1 << 20, 0), PKV_OK);
    pkv_memory_free(&m);
    assert_int_equal(errno, EDOM);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_aligned_and_zeroed),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_a_system_that_refuses),
        cmocka_unit_test(test_success_leaves_errno),
    };
    return cmocka_run_group_tests_name("memory", tests, NULL, NULL);
}
