/*
 * The BurstGPT traces: a CSV of time, model and lengths, with two more columns
 * in the newer files.
 *
 *     Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
 *     120.0,d3c1a7f0-5b1e-4a6e-9f5d-0c6a2b7e8f11,4,ChatGPT,51,17,68,Conversation log
 *     124.5,,1,GPT-4,900,0,900,API log
 *
 * The time is in seconds.  A response of 0 tokens is a request that failed.  It
 * is kept if its prompt is known: the prompt was written.  In the files of the
 * first four months it is not, all three lengths are 0; such a row is no request
 * of any length, and is passed over.
 */
#include "trace.h"
#include "trace_csv.h"

#include <string.h>

enum { MODEL, REQUEST, RESPONSE, TOTAL, LOG_TYPE, N_COLUMNS, N_MORE_COLUMNS = 2 };

#define MORE_COLUMNS "Session ID,Elapsed time,"
#define COLUMNS "Model,Request tokens,Response tokens,Total tokens,Log Type"

static const char header[] = "Timestamp," COLUMNS;
static const char wide_header[] = "Timestamp," MORE_COLUMNS COLUMNS;

/* The columns between the time and the model; -1 if the line is no header. */
static int columns_before_model(const char *line, size_t length)
{
    if (length == sizeof header - 1 && memcmp(line, header, length) == 0) {
        return 0;
    }
    bool is_wide = length == sizeof wide_header - 1 && memcmp(line, wide_header, length) == 0;
    return is_wide ? N_MORE_COLUMNS : -1;
}

static bool burstgpt_recognise(const char *line, size_t length)
{
    return columns_before_model(line, length) >= 0;
}

static const char *parse_header(trace *t, const char *line, size_t length)
{
    int n_more = columns_before_model(line, length);
    if (n_more < 0) {
        return "the header Timestamp,[" MORE_COLUMNS "]" COLUMNS " is missing";
    }
    t->n_columns = 1 + n_more + N_COLUMNS;
    return NULL;
}

static const char *burstgpt_parse_line(trace *t, const char *line, size_t length,
                                       int64_t line_index)
{
    if (line_index == 0) {
        return parse_header(t, line, length);
    }
    csv_field fields[1 + N_MORE_COLUMNS + N_COLUMNS];
    if (csv_split(line, length, fields, (int)t->n_columns) != t->n_columns) {
        return "not as many columns as the header has";
    }
    trace_request request = {0};
    if (!csv_seconds(fields[0], &request.arrival_ns)) {
        return "Timestamp is not a number of seconds as in 45 or 19440110.5";
    }
    const csv_field *from_model = fields + t->n_columns - N_COLUMNS;
    if (!csv_int(from_model[REQUEST], INT32_MAX, &request.prompt_tokens)) {
        return "Request tokens is not a whole number from 0 to 2147483647";
    }
    if (!csv_int(from_model[RESPONSE], INT32_MAX, &request.output_tokens)) {
        return "Response tokens is not a whole number from 0 to 2147483647";
    }
    int64_t total;
    if (!csv_int(from_model[TOTAL], INT64_MAX, &total) ||
        total != request.prompt_tokens + request.output_tokens) {
        return "Total tokens is not the sum of Request tokens and Response tokens";
    }
    if (total == 0) {
        return NULL;
    }
    if (request.prompt_tokens == 0) {
        return TRACE_EMPTY_PROMPT;
    }
    return trace_add(t, &request) ? NULL : TRACE_OUT_OF_MEMORY;
}

const trace_format trace_format_burstgpt = {
    .name = "burstgpt",
    .recognise = burstgpt_recognise,
    .parse_line = burstgpt_parse_line,
};
