/* Versions, names, error lines, dtypes, and the choice of an instruction set. */
#include "support.h"

#include <stdio.h>
#include <string.h>

static void test_version(void **state)
{
    (void)state;
    char text[32];
    snprintf(text, sizeof text, "%d.%d.%d", PKV_VERSION_MAJOR, PKV_VERSION_MINOR,
             PKV_VERSION_PATCH);
    assert_string_equal(pkv_version_string(), text);
    assert_int_equal(pkv_version(),
                     PKV_VERSION_MAJOR * 10000 + PKV_VERSION_MINOR * 100 + PKV_VERSION_PATCH);
}

static void test_status_names(void **state)
{
    (void)state;
    static const char *const names[] = {
        "PKV_OK",         "PKV_E_INVALID", "PKV_E_RANGE",  "PKV_E_STRICT", "PKV_E_UNSUPPORTED",
        "PKV_E_NO_MEMORY", "PKV_E_NO_PAGES", "PKV_E_STATE", "PKV_E_DEVICE", "PKV_E_IO",
        "PKV_E_CORRUPT"};
    for (pkv_status i = 0; i < 11; i++) {
        assert_string_equal(pkv_status_name(i), names[i]);
    }
    assert_string_equal(pkv_status_name(11), "PKV_E_?");
    assert_string_equal(pkv_status_name(-1), "PKV_E_?");
    assert_string_equal(pkv_status_name(INT32_MAX), "PKV_E_?");
}

static void test_dtypes(void **state)
{
    (void)state;
    static const struct {
        pkv_dtype   dtype;
        const char *name;
        int32_t     bits;
    } rows[] = {{PKV_DTYPE_F32, "f32", 32},          {PKV_DTYPE_F16, "f16", 16},
                {PKV_DTYPE_BF16, "bf16", 16},        {PKV_DTYPE_FP8_E4M3, "fp8_e4m3", 8},
                {PKV_DTYPE_FP8_E5M2, "fp8_e5m2", 8}, {PKV_DTYPE_INT8, "int8", 8},
                {PKV_DTYPE_INT4, "int4", 4},         {PKV_DTYPE_BITS8, "bits8", 8},
                {PKV_DTYPE_BITS16, "bits16", 16},    {PKV_DTYPE_BITS32, "bits32", 32}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        assert_int_equal(rows[i].dtype, i + 1); /* pinned: files and callers keep them */
        assert_string_equal(pkv_dtype_name(rows[i].dtype), rows[i].name);
        assert_int_equal(pkv_dtype_from_name(rows[i].name), rows[i].dtype);
        assert_int_equal(pkv_dtype_bits(rows[i].dtype), rows[i].bits);
    }
    static const pkv_dtype none[] = {0, -1, 11, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < sizeof none / sizeof none[0]; i++) {
        assert_null(pkv_dtype_name(none[i]));
        assert_int_equal(pkv_dtype_bits(none[i]), 0);
    }
    assert_int_equal(pkv_dtype_from_name(NULL), 0);
    assert_int_equal(pkv_dtype_from_name(""), 0);
    assert_int_equal(pkv_dtype_from_name("bf1"), 0);
    assert_int_equal(pkv_dtype_from_name("BF16"), 0);
}

/* ---- error lines --------------------------------------------------------- */

static pkv_error some_error(void)
{
    return (pkv_error){.code = PKV_E_RANGE, .rule = PKV_RULE_PAGE, .index = 41, .layer = 17,
                       .value = 9999, .limit = 511, .what = "a page is nowhere"};
}

static void test_error_line(void **state)
{
    (void)state;
    char line[256];
    pkv_error err = some_error();
    size_t length = pkv_error_format(&err, line, sizeof line);
    assert_int_equal(length, strlen(line));
    static const char *const parts[] = {"PKV_E_RANGE", "a page is nowhere", "41", "17", "9999",
                                        "511"};
    for (size_t i = 0; i < sizeof parts / sizeof parts[0]; i++) {
        assert_non_null(strstr(line, parts[i]));
    }
    assert_null(strchr(line, '\n'));
}

/* What the index counts is said where that is known, and numbers where there are any. */
static void test_error_line_by_rule(void **state)
{
    (void)state;
    static const struct {
        pkv_error   err;
        const char *line;
    } cases[] = {
        {{.code = PKV_E_NO_PAGES, .index = 1, .layer = -1, .value = 3, .limit = 5, .what = "no"},
         "PKV_E_NO_PAGES: at 1: no"},
        {{.code = PKV_E_STATE, .index = 0, .layer = -1, .what = "no"}, "PKV_E_STATE: at 0: no"},
        {{.code = PKV_E_NO_PAGES, .index = -1, .layer = -1, .what = "no"}, "PKV_E_NO_PAGES: no"},
        {{.code = PKV_E_CORRUPT, .rule = PKV_RULE_PAGE, .index = 7, .layer = -1, .what = "no"},
         "PKV_E_CORRUPT: at 7: no"},
        {{.code = PKV_E_STATE, .rule = PKV_RULE_PAGE, .index = 2, .layer = -1, .value = 9,
          .what = "no"}, "PKV_E_STATE: at 2: no (found 9, limit 0)"},
        {{.code = PKV_E_RANGE, .rule = PKV_RULE_SLICE_LEN, .index = 4, .layer = -1, .what = "no"},
         "PKV_E_RANGE: slice 4: no (found 0, limit 0)"},
        {{.code = PKV_E_RANGE, .rule = PKV_RULE_SCHEDULED, .index = 4, .layer = -1, .value = -1,
          .what = "no"}, "PKV_E_RANGE: request 4: no (found -1, limit 0)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[256];
        pkv_error_format(&cases[i].err, line, sizeof line);
        assert_string_equal(line, cases[i].line);
    }
}

/* Cut at every length: never past the room, always ended, always the same result. */
static void test_error_line_is_cut(void **state)
{
    (void)state;
    char whole[256];
    pkv_error err = some_error();
    size_t length = pkv_error_format(&err, whole, sizeof whole);
    assert_int_equal(pkv_error_format(&err, NULL, 0), length);
    for (size_t room = 1; room <= length + 2; room++) {
        char line[256];
        memset(line, '#', sizeof line);
        assert_int_equal(pkv_error_format(&err, line, room), length);
        size_t kept = room - 1 < length ? room - 1 : length;
        assert_memory_equal(line, whole, kept);
        assert_int_equal(line[kept], '\0');
        assert_int_equal(line[room], '#');
    }
}

static void test_error_line_of_odd_errors(void **state)
{
    (void)state;
    char line[256] = "#";
    assert_int_equal(pkv_error_format(NULL, line, sizeof line), 0);
    assert_string_equal(line, "");
    assert_int_equal(pkv_error_format(NULL, NULL, 0), 0);
    pkv_error err = {.code = 99, .rule = 99, .index = INT64_MIN, .layer = INT64_MIN,
                     .value = INT64_MIN, .limit = INT64_MIN, .detail = INT64_MIN, .what = NULL};
    size_t length = pkv_error_format(&err, line, sizeof line);
    assert_int_equal(length, strlen(line));
    err = (pkv_error){.code = PKV_E_DEVICE, .index = -1, .layer = -1, .detail = 719,
                      .what = "the device is lost"};
    pkv_error_format(&err, line, sizeof line);
    assert_non_null(strstr(line, "719"));
    err.index = INT64_MAX;
    err.layer = INT64_MAX;
    err.rule = PKV_RULE_SLOT;
    err.value = INT64_MIN;
    err.limit = INT64_MIN;
    length = pkv_error_format(&err, line, sizeof line);
    assert_int_equal(length, strlen(line));
}

/* ---- instruction sets ---------------------------------------------------- */

static const char *last_usable(void)
{
    const char *name = NULL;
    for (int32_t i = 0; pkv_isa_name(i) != NULL; i++) {
        name = pkv_isa_usable(i) ? pkv_isa_name(i) : name;
    }
    return name;
}

static void test_isa_list(void **state)
{
    (void)state;
    assert_string_equal(pkv_isa_name(0), "c");
    assert_int_equal(pkv_isa_usable(0), 1);
    assert_null(pkv_isa_name(-1));
    assert_int_equal(pkv_isa_usable(-1), 0);
    assert_null(pkv_isa_name(1000));
    assert_int_equal(pkv_isa_usable(1000), 0);
}

static void test_isa_choice(void **state)
{
    (void)state;
    assert_int_equal(unsetenv("PAGEDKV_ISA"), 0);
    assert_int_equal(pkv_isa_select(NULL), PKV_OK);
    assert_string_equal(pkv_isa_current(), last_usable());
    for (int32_t i = 0; pkv_isa_name(i) != NULL; i++) {
        const char *before = pkv_isa_current();
        bool is_usable = pkv_isa_usable(i);
        assert_int_equal(pkv_isa_select(pkv_isa_name(i)), is_usable ? PKV_OK : PKV_E_UNSUPPORTED);
        assert_string_equal(pkv_isa_current(), is_usable ? pkv_isa_name(i) : before);
    }
    assert_int_equal(pkv_isa_select("c"), PKV_OK);
    assert_int_equal(pkv_isa_select("sse9"), PKV_E_INVALID);
    assert_int_equal(pkv_isa_select(""), PKV_E_INVALID);
    assert_string_equal(pkv_isa_current(), "c");
    assert_int_equal(pkv_isa_select(NULL), PKV_OK);
    assert_string_equal(pkv_isa_current(), last_usable());
}

static void test_isa_from_the_environment(void **state)
{
    (void)state;
    assert_int_equal(setenv("PAGEDKV_ISA", "c", 1), 0);
    assert_int_equal(pkv_isa_select(NULL), PKV_OK);
    assert_string_equal(pkv_isa_current(), "c");
    assert_int_equal(setenv("PAGEDKV_ISA", "no such thing", 1), 0);
    assert_int_equal(pkv_isa_select(NULL), PKV_OK);
    assert_string_equal(pkv_isa_current(), last_usable());
    assert_int_equal(unsetenv("PAGEDKV_ISA"), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_version),
        cmocka_unit_test(test_status_names),
        cmocka_unit_test(test_dtypes),
        cmocka_unit_test(test_error_line),
        cmocka_unit_test(test_error_line_by_rule),
        cmocka_unit_test(test_error_line_is_cut),
        cmocka_unit_test(test_error_line_of_odd_errors),
        cmocka_unit_test(test_isa_list),
        cmocka_unit_test(test_isa_choice),
        cmocka_unit_test(test_isa_from_the_environment),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
