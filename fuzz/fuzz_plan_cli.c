/*
 * The command line of `pagedkv plan`: each line of the input is an argument.
 * The command ends with one of its statuses, one error line if it failed, and
 * JSON that adds up if it was asked for.
 */
#include "input.h"

#include <getopt.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../cli/cli.h"

enum { MAX_ARGUMENTS = 40 };

/* A machine of 8 MiB, so that a step that is refused for its size is not a slow one first. */
uint64_t __wrap_cli_memory_bytes(void);
uint64_t __wrap_cli_memory_bytes(void)
{
    return (uint64_t)8 << 20;
}

/* Splits text, which ends with a zero byte, at its line ends.  argv has room for all. */
static int split(char *text, char **argv)
{
    static char name[] = "plan", json[] = "--json=-";
    int         argc = 0;
    argv[argc++] = name;
    while (argc < MAX_ARGUMENTS && *text != '\0') {
        char *end = text + strcspn(text, "\n");
        bool  last = *end == '\0';
        *end = '\0';
        /* No file of the fuzzer's making is to be written: every JSON goes to standard output. */
        argv[argc++] = strncmp(text, "--j", 3) == 0 ? json : text;
        text = last ? end : end + 1;
    }
    argv[argc] = NULL;
    return argc;
}

/* The i-th number of the array `key`, which must be one. */
static json_int_t number_at(const json_t *array, size_t i)
{
    const json_t *value = json_array_get(array, i);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

/* The slices must write each row once, in order. */
static void check_json(const char *text)
{
    json_t *root = json_loads(text, 0, NULL);
    assert_true(json_is_object(root));
    const json_t *slices = json_object_get(root, "slices");
    json_int_t    row = 0;
    for (size_t i = 0; i < json_array_size(slices); i++) {
        const json_t *slice = json_array_get(slices, i);
        assert_true(json_array_size(slice) == 3 && number_at(slice, 0) >= 0);
        assert_int_equal(number_at(slice, 1), row);
        row += number_at(slice, 2);
    }
    assert_int_equal(json_integer_value(json_object_get(root, "num_tokens")), row);
    assert_int_equal(json_integer_value(json_object_get(root, "num_slices")),
                     json_array_size(slices));
    assert_true(json_integer_value(json_object_get(root, "padded_num_slices")) >=
                (json_int_t)json_array_size(slices));
    json_decref(root);
}

static void check_output(int status, const capture *printed)
{
    const char *out = printed->text[CAPTURED_OUT];
    if (status == CLI_OK) {
        if (out[0] == '{') {
            check_json(out);
        } else {
            assert_true(printed->length[CAPTURED_ERR] == 0 && out[0] != '\0');
        }
    } else {
        assert_true(status == CLI_USAGE || status == CLI_EXHAUSTED);
        assert_true(is_one_error_line(printed->text[CAPTURED_ERR]));
        assert_true(out[0] == '\0');
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    char *argv[MAX_ARGUMENTS + 1];
    char *text = exactly(size + 1);
    memcpy(text, data, size);
    text[size] = '\0';
    capture printed;
    int     argc = split(text, argv);
    optind = 0; /* getopt starts over */
    capture_begin(&printed);
    int status = cmd_plan(argc, argv);
    capture_end(&printed);
    check_output(status, &printed);
    capture_free(&printed);
    free(text);
    return 0;
}
