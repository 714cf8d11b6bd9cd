/* A library without device code, whatever driver is there. */
#include <pagedkv/pagedkv_cuda.h>

#include "../support.h"

static void test_absent(void **state)
{
    (void)state;
    pkv_error err;
    pkv_cuda *cuda = (pkv_cuda *)&err;
    int32_t   n = -1;
    expect_error(pkv_cuda_open(&cuda, 0, &err), &err, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
    assert_null(cuda);
    assert_int_equal(pkv_cuda_open(&cuda, 0, NULL), PKV_E_UNSUPPORTED);
    expect_error(pkv_cuda_device_count(&n, &err), &err, PKV_E_UNSUPPORTED, PKV_RULE_NONE, -1);
    assert_int_equal(n, 0);
    expect_error(pkv_cuda_open(NULL, 0, &err), &err, PKV_E_INVALID, PKV_RULE_NONE, -1);
    pkv_cuda_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_absent)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
