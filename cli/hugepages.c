/* Huge pages as Linux reports them; elsewhere nothing is known. */
#define _DEFAULT_SOURCE
#include "hugepages.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

int64_t hugepages_bytes(const void *start, size_t bytes)
{
    FILE    *smaps = fopen("/proc/self/smaps", "re");
    uint64_t first = (uint64_t)(uintptr_t)start;
    uint64_t end = first + bytes;
    uint64_t huge_bytes = 0;
    int      inside = 0;
    char     line[512];

    if (smaps == NULL) {
        return -1;
    }
    while (fgets(line, sizeof line, smaps) != NULL) {
        uint64_t from, to, kib;
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " ", &from, &to) == 2) {
            inside = from < end && to > first;
        } else if (inside && sscanf(line, "AnonHugePages: %" SCNu64 " kB", &kib) == 1) {
            huge_bytes += kib * 1024;
        }
    }
    fclose(smaps);
    return (int64_t)(huge_bytes < bytes ? huge_bytes : bytes);
}

void hugepages_refuse(void *start, size_t bytes)
{
#ifdef MADV_NOHUGEPAGE
    /* A kernel without huge pages refuses the advice, which is as good. */
    (void)madvise(start, bytes, MADV_NOHUGEPAGE);
#else
    (void)start;
    (void)bytes;
#endif
}

const char *hugepages_setting(void)
{
    static const char *const settings[] = {"always", "madvise", "never"};
    FILE *file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
    char  line[128] = "";

    if (file == NULL) {
        return "unknown";
    }
    if (fgets(line, sizeof line, file) == NULL) {
        line[0] = '\0';
    }
    fclose(file);
    for (size_t i = 0; i < sizeof settings / sizeof settings[0]; i++) {
        const char *found = strstr(line, settings[i]);
        if (found != NULL && found > line && found[-1] == '[') {
            return settings[i];
        }
    }
    return "unknown";
}
