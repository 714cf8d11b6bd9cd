/* What the commands share: one-line errors, numbers and options, JSON files, the clock. */
#define _XOPEN_SOURCE 700 /* POSIX, and realpath() */

#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- errors -------------------------------------------------------------- */

int cli_fail(int status, const char *format, ...)
{
    /* Room for the longest path and a reason. */
    char line[PATH_MAX + 1024];
    va_list args;
    va_start(args, format);
    vsnprintf(line, sizeof line, format, args);
    va_end(args);
    /* File names and arguments may hold line ends and terminal controls. */
    for (char *c = line; *c != '\0'; c++) {
        if ((unsigned char)*c < 0x20 || *c == 0x7f) {
            *c = '?';
        }
    }
    fprintf(stderr, "pagedkv: %s\n", line);
    return status;
}

int cli_no_memory(const char *what)
{
    return cli_fail(CLI_EXHAUSTED, "out of memory for %s", what);
}

int cli_fail_pkv(const pkv_error *err, const char *what)
{
    char line[512];
    pkv_error_format(err, line, sizeof line);
    int status = CLI_USAGE;
    if (err->code == PKV_E_NO_MEMORY || err->code == PKV_E_NO_PAGES) {
        status = CLI_EXHAUSTED;
    } else if (err->code == PKV_E_DEVICE) {
        status = CLI_NO_DEVICE;
    }
    return cli_fail(status, "%s: %s", what, line);
}

/* ---- options ------------------------------------------------------------- */

const char *cli_scan_int(const char *begin, const char *end, int64_t max, int64_t *out)
{
    int64_t value = 0;
    const char *p = begin;
    for (; p < end && *p >= '0' && *p <= '9'; p++) {
        int64_t digit = *p - '0';
        if (value > max / 10 || value * 10 > max - digit) {
            return NULL;
        }
        value = value * 10 + digit;
    }
    *out = value;
    return p == begin ? NULL : p;
}

bool cli_parse_int(const char *option, const char *text, int64_t min, int64_t max, int64_t *out)
{
    const char *end = text + strlen(text);
    bool negative = *text == '-';
    int64_t value = 0;
    if (cli_scan_int(text + negative, end, INT64_MAX, &value) == end) {
        value = negative ? -value : value;
        if (value >= min && value <= max) {
            *out = value;
            return true;
        }
    }
    cli_fail(CLI_USAGE, "%s \"%.60s\": not a whole number from %" PRId64 " to %" PRId64, option,
             text, min, max);
    return false;
}

bool cli_parse_threads(const char *option, const char *text, int64_t *out)
{
    int64_t threads = 0;
    long n_online = sysconf(_SC_NPROCESSORS_ONLN);
    if (!cli_parse_int(option, text, 1, INT32_MAX, &threads)) {
        return false;
    }
    if (n_online > 0 && threads > n_online) {
        cli_fail(CLI_USAGE, "%s %" PRId64 ": this machine has %ld processors online", option,
                 threads, n_online);
        return false;
    }
    *out = threads;
    return true;
}

bool cli_parse_dtype(const char *option, const char *text, pkv_dtype *out)
{
    static const pkv_dtype dtypes[] = {
        PKV_DTYPE_F32,      PKV_DTYPE_F16,  PKV_DTYPE_BF16, PKV_DTYPE_FP8_E4M3,
        PKV_DTYPE_FP8_E5M2, PKV_DTYPE_INT8, PKV_DTYPE_INT4,
    };
    /* The library also names opaque items; those are not for the command line. */
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
        if (strcmp(text, pkv_dtype_name(dtypes[i])) == 0) {
            *out = dtypes[i];
            return true;
        }
    }
    cli_fail(CLI_USAGE,
             "%s \"%.60s\": not one of f32 f16 bf16 fp8_e4m3 fp8_e5m2 int8 int4", option, text);
    return false;
}

/* One line about an option that getopt_long() answered with '?' or ':'. */
static int bad_option(char **argv, int answer)
{
    const char *problem = answer == ':' ? "needs a value" : "is not an option of this command";
    const char *text = argv[optind - 1];
    char letter[] = {'-', (char)optopt, '\0'};
    if (optopt > 0 && optopt < CLI_FIRST_LONG_OPTION) {
        /* A letter can stand anywhere in its word; getopt tells the letter alone. */
        text = letter;
    } else if (answer == '?' && optopt != 0) {
        problem = "takes no value";
    }
    return cli_fail(CLI_USAGE, "%.60s %s (see pagedkv %s --help)", text, problem, argv[0]);
}

int cli_next_option(int argc, char **argv, const struct option *options, int (*print_help)(void),
                    bool *done, int *status)
{
    int option = getopt_long(argc, argv, ":h", options, NULL);
    if (option == 'h') {
        *done = true;
        *status = print_help();
    } else if (option == '?' || option == ':') {
        *status = bad_option(argv, option);
    } else if (option != -1) {
        return option;
    }
    return 0;
}

int cli_extra_argument(char **argv)
{
    return cli_fail(CLI_USAGE, "unexpected argument \"%.60s\" (see pagedkv %s --help)",
                    argv[optind], argv[0]);
}

/* ---- output -------------------------------------------------------------- */

static bool is_standard_output(const char *path)
{
    return strcmp(path, "-") == 0;
}

FILE *cli_table_stream(const char *json_path)
{
    return json_path != NULL && is_standard_output(json_path) ? stderr : stdout;
}

/* Writes and flushes; 0, or the errno of what failed. */
static int dump(const json_t *root, FILE *file)
{
    errno = 0;
    if (json_dumpf(root, file, JSON_INDENT(2) | JSON_REAL_PRECISION(12)) == 0 &&
        putc('\n', file) != EOF && fflush(file) == 0) {
        return 0;
    }
    return errno != 0 ? errno : ENOMEM;
}

static int dump_to_new_file(const json_t *root, const char *path)
{
    FILE *file = fopen(path, "w");
    if (file == NULL) {
        return errno;
    }
    int problem = dump(root, file);
    if (fclose(file) != 0 && problem == 0) {
        problem = errno;
    }
    return problem;
}

/* A device, a pipe or a link must stay what it is: only plain files are replaced. */
static bool is_replaced(const char *path)
{
    struct stat found;
    return lstat(path, &found) != 0 || S_ISREG(found.st_mode);
}

/* The name of the file that is renamed to path when it is whole; NULL: no memory. */
static char *name_beside(const char *path)
{
    size_t size = strlen(path) + 32;
    char *beside = malloc(size);
    if (beside != NULL) {
        snprintf(beside, size, "%s.%ld.tmp", path, (long)getpid());
    }
    return beside;
}

static int dump_to_path(const json_t *root, const char *path)
{
    if (!is_replaced(path)) {
        return dump_to_new_file(root, path);
    }
    char *beside = name_beside(path);
    if (beside == NULL) {
        return ENOMEM;
    }
    int problem = dump_to_new_file(root, beside);
    if (problem == 0 && rename(beside, path) != 0) {
        problem = errno;
    }
    if (problem != 0) {
        unlink(beside);
    }
    free(beside);
    return problem;
}

static int fail_output(const char *path, int problem)
{
    if (problem == ENOMEM) {
        return cli_no_memory("the JSON output");
    }
    return cli_fail(CLI_USAGE, "%s: %s", is_standard_output(path) ? "standard output" : path,
                    strerror(problem));
}

/* Opens for writing and closes, nothing else.  0, or the errno of what failed. */
static int try_open(const char *path)
{
    struct stat found;
    if (stat(path, &found) == 0 && S_ISFIFO(found.st_mode)) {
        /* Closing it would tell the reader that this was all. */
        return access(path, W_OK) == 0 ? 0 : errno;
    }
    int file = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0666);
    if (file < 0) {
        return errno;
    }
    close(file);
    return 0;
}

static int try_new_file(const char *path)
{
    char *beside = name_beside(path);
    if (beside == NULL) {
        return ENOMEM;
    }
    int problem = *path == '\0' ? ENOENT : try_open(beside);
    unlink(beside);
    free(beside);
    return problem;
}

int cli_probe_output(const char *path)
{
    if (path == NULL || is_standard_output(path)) {
        return CLI_OK;
    }
    int problem = is_replaced(path) ? try_new_file(path) : try_open(path);
    return problem == 0 ? CLI_OK : fail_output(path, problem);
}

/* The name behind all links, also of a file that is not there yet; NULL: there is none. */
static char *real_name(const char *path)
{
    char *whole = realpath(path, NULL);
    if (whole != NULL || errno != ENOENT) {
        return whole;
    }
    const char *slash = strrchr(path, '/'), *name = slash == NULL ? path : slash + 1;
    char       *parent = slash == NULL ? strdup(".") : strndup(path, (size_t)(name - path));
    char       *folder = parent == NULL ? NULL : realpath(parent, NULL);
    size_t      size = folder == NULL ? 0 : strlen(folder) + strlen(name) + 2;
    whole = size == 0 ? NULL : malloc(size);
    if (whole != NULL) {
        snprintf(whole, size, "%s/%s", folder, name);
    }
    free(folder);
    free(parent);
    return whole;
}

bool cli_is_same_file(const char *a, const char *b)
{
    struct stat found;
    if (a == NULL || b == NULL || (stat(a, &found) == 0 && !S_ISREG(found.st_mode))) {
        return false;
    }
    char *name_a = real_name(a), *name_b = real_name(b);
    bool  same = name_a != NULL && name_b != NULL && strcmp(name_a, name_b) == 0;
    free(name_a);
    free(name_b);
    return same;
}

int cli_write_json(json_t *root, const char *path)
{
    if (root == NULL) {
        return cli_no_memory("the JSON output");
    }
    bool standard = is_standard_output(path);
    int problem = standard ? dump(root, stdout) : dump_to_path(root, path);
    json_decref(root);
    /* A reader that went away has seen what it wanted. */
    if (problem == EPIPE && standard) {
        return CLI_USAGE;
    }
    return problem == 0 ? CLI_OK : fail_output(path, problem);
}

bool cli_is_terminal(FILE *stream)
{
    return isatty(fileno(stream)) == 1;
}

/* ---- the machine --------------------------------------------------------- */

int64_t cli_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* The number in a file that holds nothing else; UINT64_MAX if there is none. */
static uint64_t read_number(const char *path)
{
    char line[32] = "";
    int64_t value;
    FILE *file = fopen(path, "re");
    if (file != NULL) {
        if (fgets(line, sizeof line, file) == NULL) {
            line[0] = '\0';
        }
        fclose(file);
    }
    bool number = cli_scan_int(line, line + strlen(line), INT64_MAX, &value) != NULL;
    return number ? (uint64_t)value : UINT64_MAX;
}

uint64_t cli_memory_bytes(void)
{
    static const char *const limit_files[] = {
        "/sys/fs/cgroup/memory.max",                   /* version 2 */
        "/sys/fs/cgroup/memory/memory.limit_in_bytes", /* version 1 */
    };
    long pages = sysconf(_SC_PHYS_PAGES);
    long page_bytes = sysconf(_SC_PAGESIZE);
    if (pages <= 0 || page_bytes <= 0) {
        return 0;
    }
    uint64_t bytes = (uint64_t)pages * (uint64_t)page_bytes;
    for (size_t i = 0; i < sizeof limit_files / sizeof *limit_files; i++) {
        uint64_t limit = read_number(limit_files[i]);
        bytes = limit < bytes ? limit : bytes;
    }
    return bytes;
}
