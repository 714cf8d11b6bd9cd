/* The entry: finds the command, and makes sure that what it printed was written. */
#define _POSIX_C_SOURCE 200809L

#include "cli.h"

#include <errno.h>
#include <fcntl.h>
#include <locale.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *summary;
} command;

static const command commands[] = {
    {"replay", cmd_replay, "run a request trace through a paged KV cache and check every byte"},
    {"plan", cmd_plan, "print the slices of one step"},
    {"bench", cmd_bench, "measure the library against plain copies"},
    {"info", cmd_info, "print version, instruction sets, threads and copy limit"},
};

enum { N_COMMANDS = sizeof commands / sizeof *commands };

static int print_help(void)
{
    printf("Usage: pagedkv COMMAND [OPTION...]\n"
           "       pagedkv help [COMMAND]\n"
           "       pagedkv --version\n"
           "\n"
           "The paged KV cache of an LLM inference engine: plan, write, read back, check.\n"
           "\n"
           "Commands:\n");
    for (int i = 0; i < N_COMMANDS; i++) {
        printf("  %-8s %s\n", commands[i].name, commands[i].summary);
    }
    printf("\n"
           "pagedkv COMMAND --help lists the options of a command.\n"
           "\n"
           "Exit status: 0 done; 1 a check found a difference; 2 wrong usage or bad input;\n"
           "3 a pool or memory exhausted; 4 the device asked for is not there.\n");
    return CLI_OK;
}

static const command *find_command(const char *name)
{
    for (int i = 0; i < N_COMMANDS; i++) {
        if (strcmp(commands[i].name, name) == 0) {
            return &commands[i];
        }
    }
    cli_fail(CLI_USAGE, "unknown command \"%.60s\" (see pagedkv --help)", name);
    return NULL;
}

static int run_command(int argc, char **argv)
{
    const command *found = find_command(argv[0]);
    return found == NULL ? CLI_USAGE : found->run(argc, argv);
}

static int run_help(int argc, char **argv)
{
    if (argc < 2) {
        return print_help();
    }
    char option[] = "--help";
    char *help_argv[] = {argv[1], option, NULL};
    return run_command(2, help_argv);
}

static int run(int argc, char **argv)
{
    if (argc < 2) {
        return cli_fail(CLI_USAGE, "no command given (see pagedkv --help)");
    }
    const char *first = argv[1];
    if (strcmp(first, "--version") == 0) {
        printf("pagedkv %s\n", pkv_version_string());
        return CLI_OK;
    }
    if (strcmp(first, "help") == 0 || strcmp(first, "--help") == 0 || strcmp(first, "-h") == 0) {
        return run_help(argc - 1, argv + 1);
    }
    return run_command(argc - 1, argv + 1);
}

/*
 * A standard stream that the caller closed would lend its number to the next
 * file that is opened, and tables would end up in it.  Opened for reading only,
 * it keeps the number and refuses what is written.
 */
static bool keep_standard_streams(void)
{
    for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
        if (fcntl(fd, F_GETFD) < 0 && open("/dev/null", O_RDONLY) != fd) {
            return false;
        }
    }
    return true;
}

/*
 * Threads of OpenMP that wait spin, and beside other work a replay takes ten times as
 * long.  How they wait is read before main(), so the program starts once more.
 */
static void let_waiting_threads_sleep(char **argv)
{
    const char *variable = "OMP_WAIT_POLICY";
    if (argv[0] != NULL && argv[1] != NULL && strcmp(argv[1], "replay") == 0 &&
        getenv(variable) == NULL && setenv(variable, "passive", 0) == 0) {
        execv("/proc/self/exe", argv);
    }
}

/* What stands in the buffer of standard output may fail to reach it as late as here. */
static int finish_output(int status)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout)) {
        return status;
    }
    /* A command that failed has printed its line; a reader that went away needs none. */
    if (errno != EPIPE && (status == CLI_OK || status == CLI_DIFFERENCE)) {
        cli_fail(CLI_USAGE, "standard output: %s", errno != 0 ? strerror(errno) : "write error");
    }
    return status == CLI_OK ? CLI_USAGE : status;
}

int main(int argc, char **argv)
{
    if (!keep_standard_streams()) {
        return CLI_USAGE;
    }
    let_waiting_threads_sleep(argv);
    setlocale(LC_CTYPE, "");
    return finish_output(run(argc, argv));
}
