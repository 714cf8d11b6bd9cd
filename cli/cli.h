/* What the commands share: exit statuses, one-line errors, options, JSON output. */
#ifndef PAGEDKV_CLI_H
#define PAGEDKV_CLI_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include <pagedkv/pagedkv.h>

/* Exit statuses: a contract with scripts, see docs/cli.md. */
enum {
    CLI_OK = 0,
    CLI_DIFFERENCE = 1, /* a check found a difference */
    CLI_USAGE = 2,      /* wrong usage or bad input */
    CLI_EXHAUSTED = 3,  /* a pool or memory exhausted at run time */
    CLI_NO_DEVICE = 4   /* the device that was asked for is not there */
};

/* Commands: argv[0] is the command's name.  Each returns an exit status. */
int cmd_replay(int argc, char **argv);
int cmd_plan(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_info(int argc, char **argv);

/* Prints "pagedkv: <text>" as one line on standard error and returns status. */
int cli_fail(int status, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* cli_fail(CLI_EXHAUSTED) for `what` that could not be allocated. */
int cli_no_memory(const char *what);

/* cli_fail() with a library error; `what` names the call.  The status fits the code. */
int cli_fail_pkv(const pkv_error *err, const char *what);

/*
 * Parses a whole decimal number in [min, max]; on anything else one line names
 * the option and returns false.
 */
bool cli_parse_int(const char *option, const char *text, int64_t min, int64_t max, int64_t *out);

/*
 * Reads the digits of a number in [0, max] at begin.  Returns the place behind
 * the last digit; NULL where there is none or the number is larger.
 */
const char *cli_scan_int(const char *begin, const char *end, int64_t max, int64_t *out);

/* Parses a number of threads, no more than processors are online; as cli_parse_int(). */
bool cli_parse_threads(const char *option, const char *text, int64_t *out);

/* Parses a dtype's command-line name; as cli_parse_int(). */
bool cli_parse_dtype(const char *option, const char *text, pkv_dtype *out);

/* getopt_long() values of options without a letter start here. */
enum { CLI_FIRST_LONG_OPTION = 256 };

/*
 * The next option of a command, by getopt_long().  0 where there is none, or
 * nothing more to do: then *done says that help was printed, or *status is not
 * CLI_OK because a bad option has had its line.
 */
struct option;
int cli_next_option(int argc, char **argv, const struct option *options, int (*print_help)(void),
                    bool *done, int *status);

/* One line about an argument that the command does not take.  Returns CLI_USAGE. */
int cli_extra_argument(char **argv);

/* Where tables go: standard error if JSON takes standard output, else standard output. */
FILE *cli_table_stream(const char *json_path);

/*
 * Writes `root` to a file, or to standard output for "-".  Takes the reference.
 * A NULL root means that building it ran out of memory.  A file is written
 * beside its name and renamed, so a failure leaves no half file.
 */
int cli_write_json(json_t *root, const char *path);

/*
 * Can cli_write_json() write there?  To be asked before long work: makes and
 * removes the file beside the name; a device or a link is opened only.  NULL is
 * allowed.  Exit status, after an error line.
 */
int cli_probe_output(const char *path);

/*
 * Would writing to one of two paths destroy what is in the other one?  False for
 * what is no plain file, and for NULL.
 */
bool cli_is_same_file(const char *a, const char *b);

/* True if the stream is a terminal. */
bool cli_is_terminal(FILE *stream);

/* Seconds on a clock that only moves forward, as nanoseconds. */
int64_t cli_now_ns(void);

/* Memory that this process may use, in bytes: the machine's or its control group's; 0: unknown. */
uint64_t cli_memory_bytes(void);

#endif
