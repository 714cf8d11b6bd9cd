/*
 * Runs files through a target without a fuzzer: each argument is a file, or a
 * folder of files.  So the corpora are tests with every compiler.
 */
#define _POSIX_C_SOURCE 200809L

#include "input.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* Prints why a path cannot be used; -1. */
static int fail(const char *path, const char *reason)
{
    fprintf(stderr, "%s: %s\n", path, reason);
    return -1;
}

/* The number of inputs run: 1, or -1 after an error line. */
static int run_file(const char *path, size_t size)
{
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return fail(path, strerror(errno));
    }
    uint8_t *data = exactly(size);
    size_t   got = fread(data, 1, size, file);
    fclose(file);
    if (got == size) {
        fprintf(stderr, "%s\n", path); /* before it runs: the last name is the guilty one */
        LLVMFuzzerTestOneInput(data, size);
    }
    free(data);
    return got == size ? 1 : fail(path, "read error");
}

static int run_path(const char *path);

static int run_folder(const char *path)
{
    struct dirent **entries;
    int             n = scandir(path, &entries, NULL, alphasort);
    int             total = 0;
    if (n < 0) {
        return fail(path, strerror(errno));
    }
    for (int i = 0; i < n; i++) {
        char inside[PATH_MAX];
        int  length = snprintf(inside, sizeof inside, "%s/%s", path, entries[i]->d_name);
        if (entries[i]->d_name[0] != '.' && total >= 0) {
            int ran = (size_t)length < sizeof inside ? run_path(inside)
                                                     : fail(path, "a name is too long");
            total = ran < 0 ? -1 : total + ran;
        }
        free(entries[i]);
    }
    free(entries);
    return total;
}

static int run_path(const char *path)
{
    struct stat found;
    if (stat(path, &found) != 0) {
        return fail(path, strerror(errno));
    }
    return S_ISDIR(found.st_mode) ? run_folder(path) : run_file(path, (size_t)found.st_size);
}

int main(int argc, char **argv)
{
    int total = 0;
    LLVMFuzzerTestOneInput((const uint8_t *)"", 0);
    for (int i = 1; i < argc; i++) {
        int ran = run_path(argv[i]);
        if (ran < 0) {
            return 2;
        }
        total += ran;
    }
    printf("%d inputs\n", total);
    if (total == 0) {
        fail(argv[0], "there was no input to run");
        return 2;
    }
    return 0;
}
