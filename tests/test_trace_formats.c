/* The trace formats BurstGPT, Qwen-Bailian and kv-cache-tester, and telling formats apart. */
#define _POSIX_C_SOURCE 200809L

#include "test_trace.h"

#define COLUMNS "Model,Request tokens,Response tokens,Total tokens,Log Type"
#define BURST_HEADER "Timestamp," COLUMNS
#define BURST_WIDE_HEADER "Timestamp,Session ID,Elapsed time," COLUMNS
#define BURST_ROW "45,ChatGPT,5,6,11,API log"
#define BURST_WIDE_ROW "45.5,d3c1a7f0-5b1e,4,GPT-4,5,6,11,Conversation log"

#define BAILIAN(time, prompt, ids)                                                                 \
    "{\"chat_id\": 1, \"parent_chat_id\": -1, \"timestamp\": " time ", \"input_length\": " prompt  \
    ", \"output_length\": 2, \"type\": \"text\", \"turn\": 1, \"hash_ids\": " ids "}"
#define BAILIAN_ROW BAILIAN("0.5", "17", "[7, 8]")

#define REQUEST(time, prompt, ids)                                                                 \
    "{\"t\": " time ", \"in\": " prompt ", \"out\": 2, \"hash_ids\": " ids "}"
#define GOOD REQUEST("1", "64", "[1]")
#define SUBAGENT(time, list) "{\"t\": " time ", \"type\": \"subagent\", \"requests\": " list "}"
#define SESSION(list) "{\"id\": \"a\", \"requests\": " list "}"

static void expect_hashes(const outcome *got, int64_t i, int64_t n, const int64_t *ids)
{
    const trace_request *r = &got->t.requests[i];
    assert_int_equal(r->n_hashes, n);
    assert_true(r->first_hash >= 0 && r->first_hash + n <= got->t.n_hash_ids);
    for (int64_t h = 0; h < n; h++) {
        assert_int_equal(got->t.hash_ids[r->first_hash + h], ids[h]);
    }
}

/* ---- BurstGPT ------------------------------------------------------------ */

static void test_burstgpt(void **state)
{
    (void)state;
    outcome got;
    read_good("\n" BURST_HEADER "\r\n"
              "5,ChatGPT,472,18,490,Conversation log\r\n"
              "\r\n \t\n"
              "45.25,ChatGPT,1,2147483647,2147483648,API log\n"
              "45,GPT-4,0,0,0,API log\n"
              "4.999999999,GPT-4,417,0,417,API log\n"
              "9000000000,GPT-4,2147483647,1,2147483648,API log",
              "auto", 0, &got);
    assert_string_equal(got.t.format, "burstgpt");
    assert_int_equal(got.t.hash_block_tokens, 0);
    assert_int_equal(got.t.n_requests, 4);
    expect_request(&got, 0, 0, 472, 18);
    expect_request(&got, 1, INT64_C(40250000000), 1, 2147483647);
    expect_request(&got, 2, -1, 417, 0);
    expect_request(&got, 3, INT64_C(8999999995000000000), 2147483647, 1);
    assert_int_equal(got.t.requests[2].line, 8);
    trace_free(&got.t);
}

static void test_burstgpt_wide(void **state)
{
    (void)state;
    outcome got;
    read_good(BURST_WIDE_HEADER "\n" BURST_WIDE_ROW "\n"
              "46.0,,,GPT-4,7,8,15,API log\n"
              "46.0,,0,GPT-4,0,0,0,API log\n"
              "47.0,,1,GPT-4,9,10,19,API log\n"
              "never read\n",
              "burstgpt", 3, &got);
    assert_int_equal(got.t.n_requests, 3);
    expect_request(&got, 0, 0, 5, 6);
    expect_request(&got, 1, 500000000, 7, 8);
    expect_request(&got, 2, 1500000000, 9, 10);
    trace_free(&got.t);
}

static void test_burstgpt_bad_lines(void **state)
{
    (void)state;
    static const char columns[] = "not as many columns as the header has";
    static const char time[] = "Timestamp is not a number of seconds as in 45 or 19440110.5";
    static const char prompt[] = "Request tokens is not a whole number from 0 to 2147483647";
    static const char output[] = "Response tokens is not a whole number from 0 to 2147483647";
    static const char total[] =
        "Total tokens is not the sum of Request tokens and Response tokens";
    static const struct {
        const char *line;
        const char *reason;
    } cases[] = {
        {"45", columns},
        {"45,ChatGPT,5,6,11", columns},
        {BURST_ROW ",", columns},
        {BURST_WIDE_ROW, columns},
        {BURST_HEADER, time},
        {",ChatGPT,5,6,11,API log", time},
        {" 45,ChatGPT,5,6,11,API log", time},
        {"-45,ChatGPT,5,6,11,API log", time},
        {"45.,ChatGPT,5,6,11,API log", time},
        {"45.5x,ChatGPT,5,6,11,API log", time},
        {"4e5,ChatGPT,5,6,11,API log", time},
        {"45.1234567890,ChatGPT,5,6,11,API log", time},
        {"\"45\",ChatGPT,5,6,11,API log", time},
        {"9000000000.000000001,ChatGPT,5,6,11,API log", time},
        {"9000000001,ChatGPT,5,6,11,API log", time},
        {"99999999999999999999,ChatGPT,5,6,11,API log", time},
        {"45,ChatGPT,,6,6,API log", prompt},
        {"45,ChatGPT,-5,6,1,API log", prompt},
        {"45,ChatGPT,5.0,6,11,API log", prompt},
        {"45,ChatGPT,2147483648,6,2147483654,API log", prompt},
        {"45,ChatGPT,5,,5,API log", output},
        {"45,ChatGPT,5,x,5,API log", output},
        {"45,ChatGPT,5,2147483648,2147483653,API log", output},
        {"45,ChatGPT,5,6,,API log", total},
        {"45,ChatGPT,5,6,12,API log", total},
        {"45,ChatGPT,5,6,11 ,API log", total},
        {"45,ChatGPT,0,0,1,API log", total},
        {"45,ChatGPT,5,6,99999999999999999999,API log", total},
        {"45,ChatGPT,0,6,6,API log", TRACE_EMPTY_PROMPT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[512];
        outcome got;
        snprintf(text, sizeof text, BURST_HEADER "\n" BURST_ROW "\n\n%s\n" BURST_ROW,
                 cases[i].line);
        read_bytes(text, strlen(text), "auto", 0, &got);
        expect_error(&got, 4, cases[i].reason);
    }
    outcome got;
    static const char narrow_row[] = BURST_WIDE_HEADER "\n" BURST_ROW "\n";
    read_bytes(narrow_row, sizeof narrow_row - 1, "auto", 0, &got);
    expect_error(&got, 2, columns);
}

/* ---- Qwen-Bailian -------------------------------------------------------- */

static void test_bailian(void **state)
{
    (void)state;
    static const int64_t ids[] = {7, 8, 9223372036854775807};
    outcome got;
    read_good("\n " BAILIAN_ROW "\r\n"
              " \t\r\n" BAILIAN("0.499999999", "16", "[7]") "\n" /* backwards */
              BAILIAN("61.114", "33", "[7, 8, 9223372036854775807]") "\n"
              "{\"hash_ids\": [7], \"output_length\": 0, \"input_length\": 1, \"timestamp\": 2}",
              "auto", 0, &got);
    assert_string_equal(got.t.format, "bailian");
    assert_int_equal(got.t.hash_block_tokens, 16);
    assert_int_equal(got.t.n_requests, 4);
    expect_request(&got, 0, 0, 17, 2);
    expect_request(&got, 1, -1, 16, 2);
    expect_request(&got, 2, INT64_C(60614000000), 33, 2);
    expect_request(&got, 3, 1500000000, 1, 0);
    expect_hashes(&got, 0, 2, ids);
    expect_hashes(&got, 1, 1, ids);
    expect_hashes(&got, 2, 3, ids);
    assert_int_equal(got.t.n_hash_ids, 7);
    assert_int_equal(got.t.requests[2].line, 5);
    trace_free(&got.t);
    read_good(BAILIAN_ROW "\n" BAILIAN_ROW "\nnever read\n", "bailian", 2, &got);
    assert_int_equal(got.t.n_requests, 2);
    trace_free(&got.t);
}

static void test_bailian_bad_lines(void **state)
{
    (void)state;
    static const char time[] =
        "timestamp is missing or not a number of seconds from 0 to 9000000000";
    static const char count[] = "hash_ids has not one id for every 16 tokens of input_length";
    static const struct {
        const char *line;
        const char *reason;
    } cases[] = {
        {"{\"chat_id\": 1", "not valid JSON: it is cut off"},
        {"{\"chat_id\": 1]", "not valid JSON"},
        {"[" BAILIAN_ROW "]", "not a JSON object"},
        {"{\"chat_id\": 1, \"chat_id\": 1}", "a key stands twice in the JSON object"},
        {"{\"chat_id\": 1}", time},
        {BAILIAN("\"0\"", "17", "[7, 8]"), time},
        {BAILIAN("-0.5", "17", "[7, 8]"), time},
        {BAILIAN("-1", "17", "[7, 8]"), time},
        {BAILIAN("9000000000.5", "17", "[7, 8]"), time},
        {BAILIAN("9223372036854775807", "17", "[7, 8]"), time},
        {BAILIAN("1e300", "17", "[7, 8]"), time},
        {BAILIAN("1e999", "17", "[7, 8]"), "a number does not fit 64 bits"},
        {BAILIAN("0", "17.0", "[7, 8]"),
         "input_length is missing or not a whole number from 1 to 2147483647"},
        {BAILIAN("0", "0", "[]"), TRACE_EMPTY_PROMPT},
        {"{\"timestamp\": 0, \"input_length\": 1}",
         "output_length is missing or not a whole number from 0 to 2147483647"},
        {BAILIAN("0", "17", "[7, -8]"),
         "hash_ids is missing or not a list of whole numbers from 0"},
        {BAILIAN("0", "17", "[7]"), count},
        {BAILIAN("0", "17", "[7, 8, 9]"), count},
        {BAILIAN("0", "16", "[7, 8]"), count},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1024];
        outcome got;
        snprintf(text, sizeof text, BAILIAN_ROW "\n%s\n" BAILIAN_ROW, cases[i].line);
        read_bytes(text, strlen(text), "auto", 0, &got);
        expect_error(&got, 2, cases[i].reason);
    }
}

/* ---- kv-cache-tester ----------------------------------------------------- */

static const char session[] =
    "{\"id\": \"a\", \"block_size\": 8, \"requests\": [\n"
    "  {\"t\": 2.5, \"type\": \"n\", \"in\": 17, \"out\": 1, \"hash_ids\": [1, 2]},\n"
    "  {\"t\": 3, \"type\": \"subagent\", \"requests\": [\n"
    "    {\"t\": 0.0, \"in\": 7, \"out\": 2, \"hash_ids\": []},\n"
    "    {\"t\": 1.0, \"type\": \"subagent\", \"requests\": [\r\n"
    "      {\"t\": 0.5, \"in\": 16, \"out\": 3, \"hash_ids\": [1, 4]}]},\r\n"
    "    {\"t\": 9, \"in\": 9, \"out\": 4, \"hash_ids\": [1, 5]}]},\n"
    "  {\"t\": 4.25, \"in\": 24, \"out\": 5, \"hash_ids\": [1, 2, 3]},\n"
    "  {\"t\": 3.0, \"in\": 8, \"out\": 0, \"hash_ids\": [6]},\n"
    "  {\"t\": 1e1, \"type\": \"subagent\", \"requests\": []}\n"
    "]}\n";

static void test_agentic(void **state)
{
    (void)state;
    static const int64_t first[] = {1, 2, 3};
    static const int64_t other[] = {1, 4, 1, 5, 6};
    outcome got;
    read_good(session, "auto", 0, &got);
    assert_string_equal(got.t.format, "agentic");
    assert_int_equal(got.t.hash_block_tokens, 8);
    assert_int_equal(got.t.n_requests, 6);
    expect_request(&got, 0, 0, 17, 1);
    expect_request(&got, 1, 500000000, 7, 2);
    expect_request(&got, 2, 500000000, 8, 0);
    expect_request(&got, 3, 1750000000, 24, 5);
    expect_request(&got, 4, 2000000000, 16, 3);
    expect_request(&got, 5, 9500000000, 9, 4);
    expect_hashes(&got, 0, 2, first);
    expect_hashes(&got, 1, 0, NULL);
    expect_hashes(&got, 2, 1, other + 4);
    expect_hashes(&got, 3, 3, first);
    expect_hashes(&got, 4, 2, other);
    expect_hashes(&got, 5, 2, other + 2);
    assert_int_equal(got.t.n_hash_ids, 10);
    assert_int_equal(got.t.requests[0].line, 0);
    trace_free(&got.t);
}

/* The first in order of time are kept, with their hash ids; others are not checked. */
static void test_agentic_max_requests(void **state)
{
    (void)state;
    static const int64_t id = 1;
    outcome got;
    read_good(session, "agentic", 3, &got);
    assert_int_equal(got.t.n_requests, 3);
    assert_int_equal(got.t.n_hash_ids, 3);
    expect_request(&got, 2, 500000000, 8, 0);
    trace_free(&got.t);
    read_good(SESSION("[{\"t\": 2}, " GOOD "]"), "auto", 1, &got);
    assert_int_equal(got.t.n_requests, 1);
    assert_int_equal(got.t.hash_block_tokens, 64);
    expect_hashes(&got, 0, 1, &id);
    trace_free(&got.t);
}

/* Bad documents: what stands behind "file:2: ", or file:line: if line is another. */
static void test_agentic_bad_documents(void **state)
{
    (void)state;
    static const char hashes[] =
        "request 2: hash_ids is missing or not a list of whole numbers from 0";
    static const char count[] = "request 2: hash_ids has not one id for every block of in";
    static const char time[] =
        "request 2: t is missing or not a number of seconds from 0 to 9000000000";
    static const char block[] = "block_size is not a whole number from 1 to 2147483647";
    static const char list[] = "requests is missing or not a list";
    static const struct {
        const char *text;
        int64_t     line;
        const char *reason;
    } cases[] = {
        {"{\n\"requests\": [\n" GOOD ",\n", 4, "not valid JSON: it is cut off"},
        {"{\n\"requests\": [\n" GOOD ",]}\n", 4, "not valid JSON"},
        {SESSION("[]") "\n\n" SESSION("[]"), 4, "not valid JSON"},
        {"{\n\"requests\":\n [], \"requests\": []}", 4, "a key stands twice in the JSON object"},
        {SESSION("[{\"t\":\n 1, \"t\": 1}]"), 3, "a key stands twice in the JSON object"},
        {"{\"requests\":\n [99999999999999999999]}", 3, "a number does not fit 64 bits"},
        {"{}", 2, list},
        {"[]", 2, "not a JSON object"},
        {SESSION("{}"), 2, list},
        {"{\"block_size\": 0, \"requests\": []}", 2, block},
        {"{\"block_size\": 64.0, \"requests\": []}", 2, block},
        {"{\"block_size\": 2147483648, \"requests\": []}", 2, block},
        {SESSION("[" GOOD ", 5]"), 2, "request 2: not a JSON object"},
        {SESSION("[" GOOD ", {\"in\": 64}]"), 2, time},
        {SESSION("[" GOOD ", " REQUEST("-1", "64", "[1]") "]"), 2, time},
        {SESSION("[" GOOD ", " REQUEST("9e9", "64", "[]") ", " REQUEST("1e10", "64", "[]") "]"), 2,
         "request 3: t is missing or not a number of seconds from 0 to 9000000000"},
        {SESSION("[" GOOD ", {\"t\": 1, \"type\": \"subagent\"}]"), 2,
         "request 2: requests is missing or not a list"},
        {SESSION("[" SUBAGENT("1", "[" GOOD ", {}]") "]"), 2,
         "request 3: t is missing or not a number of seconds from 0 to 9000000000"},
        {SESSION("[" SUBAGENT("8999999999.5", "[" GOOD "]") "]"), 2,
         "request 2: t of a sub-agent adds up to more than 9000000000 seconds"},
        {SESSION("[" GOOD ", " REQUEST("1", "null", "[]") "]"), 2,
         "request 2: in is missing or not a whole number from 1 to 2147483647"},
        {SESSION("[" GOOD ", {\"t\": 1, \"in\": 64}]"), 2,
         "request 2: out is missing or not a whole number from 0 to 2147483647"},
        {SESSION("[" GOOD ", " REQUEST("1", "0", "[]") "]"), 2, "request 2: " TRACE_EMPTY_PROMPT},
        {SESSION("[" GOOD ", {\"t\": 1, \"in\": 64, \"out\": 0}]"), 2, hashes},
        {SESSION("[" GOOD ", " REQUEST("1", "64", "[-1]") "]"), 2, hashes},
        {SESSION("[" GOOD ", " REQUEST("1", "128", "[1]") "]"), 2, count},
        {SESSION("[" GOOD ", " REQUEST("1", "129", "[1]") "]"), 2, count},
        {SESSION("[" GOOD ", " REQUEST("1", "129", "[1, 2, 3, 4]") "]"), 2, count},
        /* The earliest is read first. */
        {SESSION("[" REQUEST("2", "0", "[]") ", " REQUEST("1", "0", "[]") "]"), 2,
         "request 2: " TRACE_EMPTY_PROMPT},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char text[1024];
        outcome got;
        snprintf(text, sizeof text, "\r\n%s", cases[i].text);
        read_bytes(text, strlen(text), "agentic", 0, &got);
        expect_error(&got, cases[i].line, cases[i].reason);
    }
}

/* The rest of a prompt behind its last whole block may have an id or none. */
static void test_agentic_tail(void **state)
{
    (void)state;
    outcome got;
    read_good(SESSION("[" REQUEST("0", "129", "[1, 2]") ", " REQUEST("0", "129", "[1, 2, 3]") ", "
                          REQUEST("0", "63", "[]") "]"),
              "auto", 0, &got);
    assert_int_equal(got.t.requests[0].n_hashes, 2);
    assert_int_equal(got.t.requests[1].n_hashes, 3);
    assert_int_equal(got.t.requests[2].n_hashes, 0);
    trace_free(&got.t);
}

/* A document may be longer than a line of another format, but not without end. */
static void test_agentic_sizes(void **state)
{
    (void)state;
    static const char begin[] = "{\"requests\": [";
    static const char end[] = GOOD "]}";
    const size_t size = (size_t)17 << 20;
    char *text = malloc(size);
    assert_non_null(text);
    memset(text, ' ', size);
    memcpy(text, begin, sizeof begin - 1);
    memcpy(text + size - (sizeof end - 1), end, sizeof end - 1);
    outcome got;
    read_bytes(text, size, "auto", 0, &got);
    assert_int_equal(got.status, CLI_OK);
    assert_int_equal(got.t.n_requests, 1);
    trace_free(&got.t);
    free(text);

    int fd = temporary_file(&got);
    assert_int_equal(write(fd, "\n{\n", 3), 3);
    assert_int_equal(ftruncate(fd, ((off_t)256 << 20) + 2), 0);
    close(fd);
    read_path(got.path, "auto", 0, &got);
    unlink(got.path);
    expect_error(&got, 2, "document larger than 256 MiB");
}

/* ---- telling formats apart ----------------------------------------------- */

/* First lines, and what auto takes them for: the format, or the error that it has. */
static void test_auto(void **state)
{
    (void)state;
    static const char cut_off[] = "not valid JSON: it is cut off";
    static const char bad_time[] =
        "timestamp is missing or not a whole number of milliseconds from 0";
    static const struct {
        const char *text;
        const char *format;
        int64_t     line;
        const char *reason;
    } cases[] = {
        {BURST_HEADER, "burstgpt", 0, NULL},
        {BURST_WIDE_HEADER "\r\n", "burstgpt", 0, NULL},
        {BAILIAN_ROW, "bailian", 0, NULL},
        {SESSION("[]"), "agentic", 0, NULL},
        {" {\n \"id\": \"a\",\n \"requests\": []\n}\n\n", "agentic", 0, NULL},
        {"{\"id\": \"}\",\n \"requests\": []}", "agentic", 0, NULL},
        {"{\"id\" : \"\\\"}\\\\\", \"requests\"\t: []}", "agentic", 0, NULL},
        {"{\"models\": [\"chat_id\", {\"chat_id\": 1}], \"chat\": \"chat_id\", \"requests\": []}",
         "agentic", 0, NULL},
        {"{\"timestamp\": 0, \"input_length\": 1, \"output_length\": 0, \"hash_ids\": [1],"
         " \"of\": {\"requests\": 1}}",
         "mooncake", 0, NULL},
        {"{\"timestamp\": 0, \"inp", NULL, 1, cut_off},
        {"{\"chat_id\": 0, \"inp\n" BAILIAN_ROW, NULL, 1, cut_off},
        {"{\"id\": 0,\n\"inp", NULL, 2, cut_off},
        {"{\"id\": 0,\r\n\t\n", NULL, 1, cut_off},
        {"{\"id\": 0,\n\"in\"}", NULL, 2, "not valid JSON"},
        {"{}", NULL, 1, bad_time},
        {"{\"chat\": \"chat_id\"}", NULL, 1, bad_time},
        {"{\"id\": \"requests\\", NULL, 1, "not valid JSON"},
        {BURST_ROW, NULL, 1,
         "not the first line of a known trace format"
         " (known: auto, azure, burstgpt, mooncake, bailian, agentic)"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        outcome got;
        if (cases[i].format != NULL) {
            read_good(cases[i].text, "auto", 0, &got);
            assert_string_equal(got.t.format, cases[i].format);
            trace_free(&got.t);
        } else {
            read_bytes(cases[i].text, strlen(cases[i].text), "auto", 0, &got);
            expect_error(&got, cases[i].line, cases[i].reason);
        }
    }
}

/* A format that is named reads no other one, and an empty file as an empty trace. */
static void test_named(void **state)
{
    (void)state;
    static const struct {
        const char *format;
        const char *text;
        const char *reason;
    } cases[] = {
        {"burstgpt", BURST_ROW,
         "the header Timestamp,[Session ID,Elapsed time,]" COLUMNS " is missing"},
        {"bailian", BURST_HEADER, "not valid JSON"},
        {"bailian", SESSION("[]"),
         "timestamp is missing or not a number of seconds from 0 to 9000000000"},
        {"mooncake", BAILIAN_ROW,
         "timestamp is missing or not a whole number of milliseconds from 0"},
        {"agentic", BAILIAN_ROW, "requests is missing or not a list"},
        {"agentic", BURST_HEADER, "not valid JSON"},
    };
    outcome got;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        read_bytes(cases[i].text, strlen(cases[i].text), cases[i].format, 0, &got);
        expect_error(&got, 1, cases[i].reason);
        read_good(i % 2 == 0 ? "" : "\r\n \n\t", cases[i].format, 0, &got);
        assert_string_equal(got.t.format, "empty");
        assert_int_equal(got.t.n_requests, 0);
        trace_free(&got.t);
    }
    static const char with_nul[] = "{\"chat_id\": 0\0}\n";
    read_bytes(with_nul, sizeof with_nul - 1, "auto", 0, &got);
    expect_error(&got, 1, "a NUL byte: this is not a text file");
    static const char behind[] = SESSION("[]") "\n";
    read_bytes(behind, sizeof behind, "auto", 0, &got);
    expect_error(&got, 2, "not valid JSON");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_burstgpt),
        cmocka_unit_test(test_burstgpt_wide),
        cmocka_unit_test(test_burstgpt_bad_lines),
        cmocka_unit_test(test_bailian),
        cmocka_unit_test(test_bailian_bad_lines),
        cmocka_unit_test(test_agentic),
        cmocka_unit_test(test_agentic_max_requests),
        cmocka_unit_test(test_agentic_bad_documents),
        cmocka_unit_test(test_agentic_tail),
        cmocka_unit_test(test_agentic_sizes),
        cmocka_unit_test(test_auto),
        cmocka_unit_test(test_named),
    };
    return cmocka_run_group_tests_name("trace_formats", tests, NULL, NULL);
}
