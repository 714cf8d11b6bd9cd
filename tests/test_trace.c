/* Trace files, good and bad, and the synthetic trace.  More formats: test_trace_formats.c. */
#define _POSIX_C_SOURCE 200809L

#include "test_trace.h"

#define AZURE_HEADER "TIMESTAMP,ContextTokens,GeneratedTokens\n"
#define AZURE_ROW "2023-11-16 18:17:03.9799600,4808,10\n"
#define FORMATS "auto, azure, burstgpt, mooncake, bailian, agentic"
#define LENGTHS "{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 1"
#define MOONCAKE_ROW                                                                               \
    "{\"timestamp\": 0, \"input_length\": 513, \"output_length\": 2, \"hash_ids\": [7, 8]}\n"

enum { MIB = 1 << 20 };

/* ---- Azure --------------------------------------------------------------- */

static void test_azure(void **state)
{
    (void)state;
    outcome got;
    /* Line ends of both kinds, blank lines, none at the end, as the real files have. */
    read_good("TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
              "2023-11-16 18:17:03.9799600,4808,10\r\n"
              "\r\n  \t\n"
              "2023-11-16 18:17:04.0319600,3180,0\n"
              "2023-11-16 18:17:03.9799599,1,2147483647",
              "auto", 0, &got);
    assert_string_equal(got.t.format, "azure");
    assert_int_equal(got.t.n_requests, 3);
    assert_int_equal(got.t.hash_block_tokens, 0);
    expect_request(&got, 0, 0, 4808, 10);
    expect_request(&got, 1, 52000000, 3180, 0);
    expect_request(&got, 2, -100, 1, 2147483647);
    trace_free(&got.t);
    assert_null(got.t.requests);
}

static void test_azure_time(void **state)
{
    (void)state;
    outcome got;
    const int64_t day_ns = INT64_C(86400000000000);
    read_good(AZURE_HEADER "1999-12-31 23:59:59.999999999,1,1\n"
                           "2000-01-01 00:00:00,1,1\n"
                           "2000-03-01 00:00:00.0,1,1\n"
                           "2023-02-28 23:59:59.5,1,1\n"
                           "2024-02-29 00:00:00,1,1\n"
                           "2024-12-31 00:00:00,1,1\n"
                           "1970-01-01 00:00:00,1,1\n"
                           "2261-12-31 23:59:59.999999999,1,1\n",
              "azure", 0, &got);
    assert_int_equal(got.t.n_requests, 8);
    const int64_t start = 1;
    expect_request(&got, 1, start, 1, 1);
    expect_request(&got, 2, start + 60 * day_ns, 1, 1);
    expect_request(&got, 3, start + 8460 * day_ns - 500000000, 1, 1);
    expect_request(&got, 4, start + 8825 * day_ns, 1, 1);
    expect_request(&got, 5, start + 9131 * day_ns, 1, 1);
    expect_request(&got, 6, start - 10957 * day_ns, 1, 1);
    expect_request(&got, 7, start + 95694 * day_ns - 1, 1, 1);
    trace_free(&got.t);
}

static void test_azure_bad_lines(void **state)
{
    (void)state;
    static const char columns[] = "not three columns: TIMESTAMP,ContextTokens,GeneratedTokens";
    static const char time[] = "TIMESTAMP is not a time as in 2023-11-16 18:17:03.9799600";
    static const char prompt[] = "ContextTokens is not a whole number from 1 to 2147483647";
    static const char output[] = "GeneratedTokens is not a whole number from 0 to 2147483647";
    static const struct {
        const char *line;
        const char *reason;
    } cases[] = {
        {"2023-11-16 18:17:03.9799600", columns},
        {"2023-11-16 18:17:03.9799600,5", columns},
        {"2023-11-16 18:17:03.9799600,5,6,7", columns},
        {AZURE_HEADER, time},
        {",5,6", time},
        {"2023-11-16T18:17:03.9799600,5,6", time},
        {"2023-11-16 18:17,5,6", time},
        {"2023-11-16 18:17:03.,5,6", time},
        {"2023-11-16 18:17:03.1234567890,5,6", time},
        {"2023-11-16 18:17:03.97x,5,6", time},
        {"2023-11-16 18:17:03x,5,6", time},
        {"2023-11-16 18:17:60,5,6", time},
        {"2023-11-16 18:60:03,5,6", time},
        {"2023-11-16 24:17:03,5,6", time},
        {"2023-11-00 18:17:03,5,6", time},
        {"2023-11-31 18:17:03,5,6", time},
        {"2023-02-29 18:17:03,5,6", time},
        {"2100-02-29 18:17:03,5,6", time},
        {"2023-00-16 18:17:03,5,6", time},
        {"2023-13-16 18:17:03,5,6", time},
        {"1969-12-31 18:17:03,5,6", time},
        {"2262-01-01 18:17:03,5,6", time},
        {"-023-11-16 18:17:03,5,6", time},
        {" 2023-11-16 18:17:03,5,6", time},
        {"2023-11-16 18:17:03,,6", prompt},
        {"2023-11-16 18:17:03,abc,6", prompt},
        {"2023-11-16 18:17:03,-5,6", prompt},
        {"2023-11-16 18:17:03, 5,6", prompt},
        {"2023-11-16 18:17:03,5.0,6", prompt},
        {"2023-11-16 18:17:03,2147483648,6", prompt},
        {"2023-11-16 18:17:03,99999999999999999999,6", prompt},
        {"2023-11-16 18:17:03,0,6", TRACE_EMPTY_PROMPT},
        {"2023-11-16 18:17:03,5,", output},
        {"2023-11-16 18:17:03,5,-6", output},
        {"2023-11-16 18:17:03,5,6 ", output},
        {"2023-11-16 18:17:03,5,2147483648", output},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[256];
        outcome got;
        snprintf(text, sizeof text, AZURE_HEADER AZURE_ROW "\n%s\n" AZURE_ROW, cases[i].line);
        read_bytes(text, strlen(text), "auto", 0, &got);
        expect_error(&got, 4, cases[i].reason);
    }
}

/* ---- Mooncake ------------------------------------------------------------ */

static void test_mooncake(void **state)
{
    (void)state;
    outcome got;
    read_good("\n {\"timestamp\": 1000, \"input_length\": 513, \"output_length\": 5,"
              " \"hash_ids\": [3, 4], \"type\": \"not read\"}\r\n"
              "{\"hash_ids\":[3],\"output_length\":0,\"input_length\":512,\"timestamp\":999}\n"
              "{\"timestamp\": 27482, \"input_length\": 1, \"output_length\": 52,"
              " \"hash_ids\": [9223372036854775807]}",
              "auto", 0, &got);
    assert_string_equal(got.t.format, "mooncake");
    assert_int_equal(got.t.hash_block_tokens, 512);
    assert_int_equal(got.t.n_requests, 3);
    expect_request(&got, 0, 0, 513, 5);
    expect_request(&got, 1, -1000000, 512, 0);
    expect_request(&got, 2, INT64_C(26482000000), 1, 52);
    static const int64_t hashes[] = {3, 4, 3, INT64_MAX};
    assert_int_equal(got.t.n_hash_ids, 4);
    assert_memory_equal(got.t.hash_ids, hashes, sizeof hashes);
    for (int64_t i = 0; i < 3; i++) {
        static const int64_t first[] = {0, 2, 3};
        assert_int_equal(got.t.requests[i].first_hash, first[i]);
        assert_int_equal(got.t.requests[i].n_hashes, i == 0 ? 2 : 1);
    }
    trace_free(&got.t);
}

static void test_mooncake_bad_lines(void **state)
{
    (void)state;
    static const char syntax[] = "not valid JSON";
    static const char cut_off[] = "not valid JSON: it is cut off";
    static const char time[] = "timestamp is missing or not a whole number of milliseconds from 0";
    static const char prompt[] =
        "input_length is missing or not a whole number from 1 to 2147483647";
    static const char output[] =
        "output_length is missing or not a whole number from 0 to 2147483647";
    static const char hashes[] = "hash_ids is missing or not a list of whole numbers from 0";
    static const char count[] = "hash_ids has not one id for every 512 tokens of input_length";
    static const struct {
        const char *line;
        const char *reason;
    } cases[] = {
        {"{", cut_off},
        {"{}}", syntax},
        {"5", syntax},
        {"{'timestamp': 0}", syntax},
        {"{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 5, \"hash_ids\": [1",
         cut_off},
        {"{\"timestamp\": \"\xff\"}", syntax},
        {"[]", "not a JSON object"},
        {"{\"timestamp\": 0, \"timestamp\": 1}", "a key stands twice in the JSON object"},
        {"{\"timestamp\": 99999999999999999999}", "a number does not fit 64 bits"},
        {"{}", time},
        {"{\"timestamp\": -1}", time},
        {"{\"timestamp\": 1.0}", time},
        {"{\"timestamp\": \"1\"}", time},
        {"{\"timestamp\": 9223372036855}", time},
        {"{\"timestamp\": 0}", prompt},
        {"{\"timestamp\": 0, \"input_length\": null}", prompt},
        {"{\"timestamp\": 0, \"input_length\": 2147483648}", prompt},
        {"{\"timestamp\": 0, \"input_length\": 5}", output},
        {"{\"timestamp\": 0, \"input_length\": 5, \"output_length\": -1}", output},
        {"{\"timestamp\": 0, \"input_length\": 0, \"output_length\": 1}", TRACE_EMPTY_PROMPT},
        {LENGTHS "}", hashes},
        {LENGTHS ", \"hash_ids\": 1}", hashes},
        {LENGTHS ", \"hash_ids\": [-1]}", hashes},
        {LENGTHS ", \"hash_ids\": [[]]}", hashes},
        {LENGTHS ", \"hash_ids\": []}", count},
        {LENGTHS ", \"hash_ids\": [1, 2]}", count},
        {"{\"timestamp\": 0, \"input_length\": 513, \"output_length\": 1, \"hash_ids\": [1]}",
         count},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        outcome got;
        snprintf(text, sizeof text, MOONCAKE_ROW "%s\n" MOONCAKE_ROW, cases[i].line);
        read_bytes(text, strlen(text), "mooncake", 0, &got);
        expect_error(&got, 2, cases[i].reason);
    }
}

/* ---- files and formats --------------------------------------------------- */

static void test_empty(void **state)
{
    (void)state;
    static const char *const texts[] = {"", "\n", "\r\n \n\t", AZURE_HEADER};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        outcome got;
        read_good(texts[i], "auto", 0, &got);
        assert_int_equal(got.t.n_requests, 0);
        trace_free(&got.t);
    }
}

static void test_max_requests(void **state)
{
    (void)state;
    outcome got;
    read_good(AZURE_HEADER AZURE_ROW AZURE_ROW "never read\n", "auto", 2, &got);
    assert_int_equal(got.t.n_requests, 2);
    trace_free(&got.t);
    read_good(AZURE_HEADER AZURE_ROW AZURE_ROW, "auto", 9, &got);
    assert_int_equal(got.t.n_requests, 2);
    trace_free(&got.t);
}

static void test_formats(void **state)
{
    (void)state;
    static const char unknown[] = "not the first line of a known trace format (known: " FORMATS ")";
    outcome got;
    read_bytes("\n" AZURE_ROW, sizeof AZURE_ROW, "auto", 0, &got);
    expect_error(&got, 2, unknown);
    read_bytes(AZURE_ROW, sizeof AZURE_ROW - 1, "azure", 0, &got);
    expect_error(&got, 1, "the header TIMESTAMP,ContextTokens,GeneratedTokens is missing");
    read_bytes(MOONCAKE_ROW, sizeof MOONCAKE_ROW - 1, "azure", 0, &got);
    expect_error(&got, 1, "the header TIMESTAMP,ContextTokens,GeneratedTokens is missing");
    read_bytes("", 0, "AZURE", 0, &got);
    assert_int_equal(got.status, CLI_USAGE);
    assert_string_equal(got.errors, "pagedkv: unknown format \"AZURE\" (known: " FORMATS ")\n");
}

static void test_bad_files(void **state)
{
    (void)state;
    outcome got;
    read_path("/nonexistent/trace.csv", "auto", 0, &got);
    assert_int_equal(got.status, CLI_USAGE);
    assert_string_equal(got.errors,
                        "pagedkv: /nonexistent/trace.csv: No such file or directory\n");
    read_path("/tmp", "auto", 0, &got);
    assert_int_equal(got.status, CLI_USAGE);
    assert_string_equal(got.errors, "pagedkv: /tmp: Is a directory\n");
    static const char with_nul[] = AZURE_HEADER AZURE_ROW "2023-11-16\0 18:17:03,5,6\n";
    read_bytes(with_nul, sizeof with_nul - 1, "auto", 0, &got);
    expect_error(&got, 3, "a NUL byte: this is not a text file");
}

/* Lines as long as the buffer and longer; the longest allowed, and one byte more. */
static void test_long_lines(void **state)
{
    (void)state;
    size_t size = sizeof MOONCAKE_ROW + 16 * MIB;
    char *text = malloc(size);
    assert_non_null(text);
    memset(text, ' ', size);
    memcpy(text, MOONCAKE_ROW, sizeof MOONCAKE_ROW - 2);
    outcome got;
    static const size_t lengths[] = {(1 << 18) - 1, 1 << 18, (1 << 18) + 1, MIB, 16 * MIB};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        text[lengths[i]] = '\n';
        memcpy(text + lengths[i] + 1, "bad", 3);
        read_bytes(text, lengths[i] + 4, "auto", 0, &got);
        expect_error(&got, 2, "not valid JSON");
        memset(text + lengths[i], ' ', 4);
    }
    read_bytes(text, 16 * MIB + 1, "auto", 0, &got);
    expect_error(&got, 1, "line longer than 16 MiB");
    free(text);
}

/* ---- the synthetic trace ------------------------------------------------- */

static uint64_t checksum(const trace *t)
{
    uint64_t sum = 0xcbf29ce484222325u;
    for (int64_t i = 0; i < t->n_requests; i++) {
        const trace_request *r = &t->requests[i];
        const int64_t fields[] = {r->arrival_ns, r->prompt_tokens, r->output_tokens};
        for (size_t f = 0; f < 3; f++) {
            sum = (sum ^ (uint64_t)fields[f]) * 0x100000001b3u;
        }
    }
    return sum;
}

static void test_synthetic_is_the_same_everywhere(void **state)
{
    (void)state;
    trace t;
    assert_int_equal(trace_synthetic(1, 1000, &t), CLI_OK);
    assert_int_equal(t.n_requests, 1000);
    assert_string_equal(t.format, "synthetic");
    assert_int_equal(t.requests[0].arrival_ns, 0);
    assert_true(checksum(&t) == UINT64_C(0xa8670c9d6ab2e21f));
    trace_free(&t);
    assert_int_equal(trace_synthetic(2, 1000, &t), CLI_OK);
    assert_true(checksum(&t) != UINT64_C(0xa8670c9d6ab2e21f));
    trace_free(&t);
    assert_int_equal(trace_synthetic(1, 0, &t), CLI_OK);
    assert_int_equal(t.n_requests, 0);
    trace_free(&t);
}

/* The share of requests up to each published quantile is that quantile. */
static void test_synthetic_quantiles(void **state)
{
    (void)state;
    static const int percents[] = {1, 5, 10, 25, 50, 75, 90, 95, 99};
    static const int64_t prompts[] = {29, 181, 207, 396, 1020, 1189, 2735, 4083, 4142};
    static const int64_t outputs[] = {16, 41, 54, 85, 129, 395, 424, 451, 601};
    enum { N = 20000 };
    trace t;
    assert_int_equal(trace_synthetic(7, N, &t), CLI_OK);
    for (size_t q = 0; q < sizeof percents / sizeof *percents; q++) {
        int64_t n_prompts = 0;
        int64_t n_outputs = 0;
        for (int64_t i = 0; i < N; i++) {
            n_prompts += t.requests[i].prompt_tokens < prompts[q];
            n_outputs += t.requests[i].output_tokens < outputs[q];
        }
        assert_in_range(n_prompts + N / 100 - N * percents[q] / 100, 0, N / 50);
        assert_in_range(n_outputs + N / 100 - N * percents[q] / 100, 0, N / 50);
    }
    for (int64_t i = 0; i < N; i++) {
        assert_in_range(t.requests[i].prompt_tokens, 2, 14050);
        assert_in_range(t.requests[i].output_tokens, 7, 1000);
        assert_int_equal(t.requests[i].n_hashes, 0);
    }
    assert_in_range(t.requests[N - 1].arrival_ns / N, 176000000, 184000000);
    trace_free(&t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_azure),
        cmocka_unit_test(test_azure_time),
        cmocka_unit_test(test_azure_bad_lines),
        cmocka_unit_test(test_mooncake),
        cmocka_unit_test(test_mooncake_bad_lines),
        cmocka_unit_test(test_empty),
        cmocka_unit_test(test_max_requests),
        cmocka_unit_test(test_formats),
        cmocka_unit_test(test_bad_files),
        cmocka_unit_test(test_long_lines),
        cmocka_unit_test(test_synthetic_is_the_same_everywhere),
        cmocka_unit_test(test_synthetic_quantiles),
    };
    return cmocka_run_group_tests_name("trace", tests, NULL, NULL);
}
