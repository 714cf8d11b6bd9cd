/*
 * A device opened and closed: what it says of itself, every refusal, and whatever a driver
 * may do wrong on the way.
 */
#include "main.h"

#include <dlfcn.h>
#include <string.h>

#include "../../src/cuda/device.h"

/* ---- a system that lacks something: functions that the linker puts in between ---- */

static const char *missing_symbol;
static bool        missing_library, missing_memory;
static int         n_libraries; /* opened and not closed */

void *__real_dlsym(void *library, const char *symbol);
void *__real_dlopen(const char *name, int flags);
int   __real_dlclose(void *library);
void *__real_calloc(size_t n, size_t n_bytes);
void *__wrap_dlsym(void *library, const char *symbol);
void *__wrap_dlopen(const char *name, int flags);
int   __wrap_dlclose(void *library);
void *__wrap_calloc(size_t n, size_t n_bytes);

void *__wrap_dlsym(void *library, const char *symbol)
{
    bool hide = missing_symbol != NULL && strcmp(symbol, missing_symbol) == 0;
    return hide ? NULL : __real_dlsym(library, symbol);
}

void *__wrap_dlopen(const char *name, int flags)
{
    void *library = missing_library ? NULL : __real_dlopen(name, flags);
    n_libraries += library != NULL;
    return library;
}

int __wrap_dlclose(void *library)
{
    n_libraries--;
    return __real_dlclose(library);
}

void *__wrap_calloc(size_t n, size_t n_bytes)
{
    return missing_memory ? NULL : __real_calloc(n, n_bytes);
}

/* ---- open, info, close ----------------------------------------------------- */

static pkv_cuda *open_first(void)
{
    pkv_cuda *cuda = NULL;
    pkv_error err;
    expect_ok(pkv_cuda_open(&cuda, 0, &err), &err);
    assert_non_null(cuda);
    return cuda;
}

static void test_info(void **state)
{
    (void)state;
    pkv_cuda     *cuda = open_first();
    pkv_cuda_info info = {.struct_size = sizeof info};
    assert_int_equal(pkv_cuda_get_info(cuda, &info), PKV_OK);
    assert_int_equal(info.struct_size, sizeof info);
    assert_int_equal(info.device, 0);
    assert_true(info.compute_major >= 8 && info.compute_minor >= 0);
    assert_true(info.n_multiprocessors > 0 && info.driver_version >= 11080);
    assert_int_equal(info.grid_blocks, info.n_multiprocessors * PKV_I_CUDA_BLOCKS_PER_SM);
    assert_int_equal(info.block_threads, PKV_I_CUDA_THREADS);
    assert_int_equal(info.reserved, 0);
    assert_true(info.memory_bytes > 0 && info.l2_bytes > 0);
    assert_true(strlen(info.name) > 0 && strlen(info.name) < sizeof info.name);
    fake_counts counts;
    if (fake_here(&counts)) {
        assert_string_equal(info.name, "Fake GPU 0");
        assert_int_equal(info.n_multiprocessors, FAKE_MULTIPROCESSORS);
        assert_int_equal(info.compute_major * 10 + info.compute_minor, 90);
        assert_int_equal(info.driver_version, 13000);
        assert_int_equal(info.l2_bytes, 1 << 20);
        assert_int_equal(info.memory_bytes, INT64_C(16) << 30);
    }
    pkv_cuda_close(cuda);
    pkv_cuda_close(NULL);
}

static void test_info_refusals(void **state)
{
    (void)state;
    pkv_cuda *cuda = open_first();
    struct {
        pkv_cuda_info info;
        char          tail[16];
    } longer;
    memset(&longer, 0xff, sizeof longer);
    longer.info.struct_size = sizeof longer;
    assert_int_equal(pkv_cuda_get_info(cuda, &longer.info), PKV_OK);
    assert_int_equal(longer.info.struct_size, sizeof longer);
    for (size_t i = 0; i < sizeof longer.tail; i++) {
        assert_int_equal(longer.tail[i], 0);
    }
    pkv_cuda_info info = {.struct_size = sizeof info - 1};
    assert_int_equal(pkv_cuda_get_info(cuda, &info), PKV_E_UNSUPPORTED);
    assert_int_equal(info.grid_blocks, 0);
    assert_int_equal(pkv_cuda_get_info(cuda, NULL), PKV_E_INVALID);
    info.struct_size = sizeof info;
    assert_int_equal(pkv_cuda_get_info(NULL, &info), PKV_E_INVALID);
    pkv_cuda_close(cuda);
}

static void test_refusals(void **state)
{
    (void)state;
    pkv_error err;
    int32_t   n = -1;
    expect_error(pkv_cuda_device_count(NULL, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    assert_int_equal(pkv_cuda_device_count(&n, NULL), PKV_OK);
    assert_true(n >= 1);
    expect_error(pkv_cuda_open(NULL, 0, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    const int32_t wrong[] = {-1, n, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        pkv_cuda *cuda = (pkv_cuda *)&err;
        expect_error(pkv_cuda_open(&cuda, wrong[i], &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
        assert_null(cuda);
        assert_int_equal(pkv_cuda_open(&cuda, wrong[i], NULL), PKV_E_INVALID);
    }
}

/* Every device, several times, and two handles of one at once. */
static void test_many(void **state)
{
    (void)state;
    int32_t n = 0;
    assert_int_equal(pkv_cuda_device_count(&n, NULL), PKV_OK);
    for (int i = 0; i < 3; i++) {
        for (int32_t device = 0; device < n; device++) {
            pkv_cuda     *one = NULL, *two = NULL;
            pkv_cuda_info info = {.struct_size = sizeof info};
            assert_int_equal(pkv_cuda_open(&one, device, NULL), PKV_OK);
            assert_int_equal(pkv_cuda_open(&two, device, NULL), PKV_OK);
            pkv_cuda_close(one);
            assert_int_equal(pkv_cuda_get_info(two, &info), PKV_OK);
            assert_int_equal(info.device, device);
            pkv_cuda_close(two);
        }
    }
}

static void test_context_is_kept(void **state)
{
    (void)state;
    pkv_i_driver     driver;
    pkv_i_cu_context context = NULL, now = NULL;
    pkv_i_cu_device  device;
    int              n = 0;
    assert_int_equal(pkv_i_driver_open(&driver, NULL), PKV_OK);
    assert_int_equal(driver.count_devices(&n), 0);
    for (int i = -1; i < n; i++) { /* no current context, then each device's */
        if (i >= 0) {
            assert_int_equal(driver.get_device(&device, i), 0);
            assert_int_equal(driver.retain(&context, device), 0);
            assert_int_equal(driver.push(context), 0);
        }
        pkv_cuda_close(open_first());
        assert_int_equal(driver.get_current(&now), 0);
        assert_ptr_equal(now, context);
        if (i >= 0) {
            assert_int_equal(driver.pop(&now), 0);
            assert_int_equal(driver.release(device), 0);
        }
    }
    pkv_i_driver_close(&driver);
}

/* ---- faults ---------------------------------------------------------------- */

/* After an open that failed: nothing was kept, and the next one works. */
static void expect_nothing_kept(const fake_counts *before)
{
    fake_counts now;
    assert_true(fake_here(&now));
    assert_int_equal(now.n_retained, before->n_retained);
    assert_int_equal(now.n_modules, before->n_modules);
    assert_int_equal(now.n_pushed, before->n_pushed);
    pkv_cuda_close(open_first());
    assert_true(fake_here(&now));
    assert_int_equal(now.n_retained, before->n_retained);
    assert_int_equal(now.n_modules, before->n_modules);
}

typedef struct fault {
    const char *name;
    int64_t     value;
    pkv_status  status;
    int64_t     detail, found;
} fault;

static const fault faults[] = {
    {"INIT", 34, PKV_E_UNSUPPORTED, 34, 0},
    {"INIT", 803, PKV_E_UNSUPPORTED, 803, 0},
    {"INIT", 804, PKV_E_UNSUPPORTED, 804, 0},
    {"INIT", 100, PKV_E_DEVICE, 100, 0},
    {"INIT", 999, PKV_E_DEVICE, 999, 0},
    {"DEVICES", 0, PKV_E_DEVICE, 100, 0},
    {"CAPABILITY", 75, PKV_E_UNSUPPORTED, 0, 75},
    {"CAPABILITY", 61, PKV_E_UNSUPPORTED, 0, 61},
    {"CONTEXT", 2, PKV_E_NO_MEMORY, 2, 0},
    {"CONTEXT", 999, PKV_E_DEVICE, 999, 0},
    {"LOAD", 2, PKV_E_NO_MEMORY, 2, 0},
    {"LOAD", 200, PKV_E_UNSUPPORTED, 200, 90},
    {"LOAD", 209, PKV_E_UNSUPPORTED, 209, 90},
    {"LOAD", 218, PKV_E_UNSUPPORTED, 218, 90},
    {"LOAD", 221, PKV_E_UNSUPPORTED, 221, 90},
    {"LOAD", 222, PKV_E_UNSUPPORTED, 222, 90},
    {"LOAD", 223, PKV_E_UNSUPPORTED, 223, 90},
    {"LOAD", 300, PKV_E_UNSUPPORTED, 300, 90},
    {"LOAD", 700, PKV_E_DEVICE, 700, 0},
    {"LOAD", 900, PKV_E_DEVICE, 900, 0},
    {"FUNCTION", 500, PKV_E_UNSUPPORTED, 500, 90},
    {"FUNCTION", 2, PKV_E_NO_MEMORY, 2, 0},
    {"FUNCTION", 719, PKV_E_DEVICE, 719, 0},
};

static void test_faults(void **state)
{
    (void)state;
    needs_fake();
    for (size_t i = 0; i < sizeof faults / sizeof faults[0]; i++) {
        const fault *f = &faults[i];
        note_case(f->name, (uint64_t)f->value, "open");
        fake_counts before;
        assert_true(fake_here(&before));
        pkv_error err;
        pkv_cuda *cuda = (pkv_cuda *)&err;
        fault_set(f->name, f->value);
        expect_error(pkv_cuda_open(&cuda, 0, &err), &err, f->status, PKV_RULE_NONE, -1);
        assert_null(cuda);
        assert_int_equal(err.detail, f->detail);
        assert_int_equal(err.value, f->found);
        assert_int_equal(pkv_cuda_open(&cuda, 0, NULL), f->status);
        fault_clear(f->name);
        expect_nothing_kept(&before);
    }
}

static void test_counts(void **state)
{
    (void)state;
    needs_fake();
    static const fault counted[] = {
        {"INIT", 34, PKV_E_UNSUPPORTED, 34, 0}, {"INIT", 803, PKV_E_UNSUPPORTED, 803, 0},
        {"INIT", 999, PKV_E_DEVICE, 999, 0},    {"INIT", 100, PKV_OK, 0, 0},
        {"DEVICES", 0, PKV_OK, 0, 0},           {"DEVICES", 1, PKV_OK, 0, 1},
        {"DEVICES", 2, PKV_OK, 0, 2},           {"LOAD", 209, PKV_OK, 0, 2},
    };
    for (size_t i = 0; i < sizeof counted / sizeof counted[0]; i++) {
        const fault *f = &counted[i];
        note_case(f->name, (uint64_t)f->value, "open");
        pkv_error err;
        int32_t   n = -1;
        fault_set(f->name, f->value);
        pkv_status status = pkv_cuda_device_count(&n, &err);
        if (f->status == PKV_OK) {
            expect_ok(status, &err);
        } else {
            expect_error(status, &err, f->status, PKV_RULE_NONE, -1);
            assert_int_equal(err.detail, f->detail);
        }
        assert_int_equal(n, f->found);
        assert_int_equal(pkv_cuda_device_count(&n, NULL), f->status);
        fault_clear(f->name);
    }
}

static void test_missing_symbols(void **state)
{
    (void)state;
#define NAME(name, symbol, parameters) #symbol,
    static const char *const needed[] = {PKV_I_DRIVER_FUNCTIONS(NAME)};
    static const char *const optional[] = {PKV_I_DRIVER_OPTIONAL(NAME)};
#undef NAME
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++) {
        note_case(needed[i], 0, "open");
        pkv_error err;
        pkv_cuda *cuda = (pkv_cuda *)&err;
        int32_t   n = -1;
        missing_symbol = needed[i];
        pkv_status status = pkv_cuda_open(&cuda, 0, &err);
        pkv_status counted = pkv_cuda_device_count(&n, NULL);
        missing_symbol = NULL;
        expect_error(status, &err, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
        assert_int_equal(err.detail, 0);
        assert_null(cuda);
        assert_int_equal(counted, PKV_E_UNSUPPORTED);
        assert_int_equal(n, 0);
    }
    for (size_t i = 0; i < sizeof optional / sizeof optional[0]; i++) {
        note_case(optional[i], 0, "open");
        missing_symbol = optional[i];
        pkv_cuda  *cuda = NULL;
        pkv_status status = pkv_cuda_open(&cuda, 0, NULL);
        missing_symbol = NULL;
        assert_int_equal(status, PKV_OK);
        pkv_cuda_close(cuda);
    }
}

/* No kernel waits for its first launch to be loaded, whatever the driver has. */
static void test_all_is_loaded(void **state)
{
    (void)state;
    needs_fake();
    static const char *const without[] = {NULL, "cuFuncLoad"};
    for (size_t i = 0; i < 2; i++) {
        fake_counts before, after;
        assert_true(fake_here(&before));
        missing_symbol = without[i];
        pkv_cuda *cuda = open_first();
        missing_symbol = NULL;
        assert_true(fake_here(&after));
        assert_int_equal(after.n_loaded - before.n_loaded, PKV_I_CUDA_KERNELS);
        pkv_cuda_close(cuda);
    }
}

static void test_missing_driver(void **state)
{
    (void)state;
    pkv_error err;
    pkv_cuda *cuda = (pkv_cuda *)&err;
    int32_t   n = -1;
    missing_library = true;
    pkv_status status = pkv_cuda_open(&cuda, 0, &err);
    pkv_status counted = pkv_cuda_device_count(&n, NULL);
    missing_library = false;
    expect_error(status, &err, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
    assert_int_equal(err.detail, 0);
    assert_null(cuda);
    assert_int_equal(counted, PKV_E_UNSUPPORTED);
    assert_int_equal(n, 0);
    pkv_cuda_close(open_first());
}

static void test_missing_memory(void **state)
{
    (void)state;
    pkv_error err;
    pkv_cuda *cuda = (pkv_cuda *)&err;
    missing_memory = true;
    pkv_status status = pkv_cuda_open(&cuda, 0, &err);
    missing_memory = false;
    expect_error(status, &err, PKV_E_NO_MEMORY, PKV_RULE_NONE, -1);
    assert_null(cuda);
    pkv_cuda_close(open_first());
}

/* Whatever went wrong in the tests before, each library was closed as often as opened. */
static void test_all_is_closed(void **state)
{
    (void)state;
    assert_int_equal(n_libraries, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_info),           cmocka_unit_test(test_info_refusals),
        cmocka_unit_test(test_refusals),       cmocka_unit_test(test_many),
        cmocka_unit_test(test_context_is_kept), cmocka_unit_test(test_faults),
        cmocka_unit_test(test_counts),         cmocka_unit_test(test_missing_symbols),
        cmocka_unit_test(test_missing_driver), cmocka_unit_test(test_missing_memory),
        cmocka_unit_test(test_all_is_loaded),  cmocka_unit_test(test_all_is_closed),
    };
    int absent = cuda_absent();
    return absent != 0 ? absent : cmocka_run_group_tests(tests, NULL, NULL);
}
