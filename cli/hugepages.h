/* What the system really gave: memory on huge pages, and its setting. */
#ifndef PAGEDKV_CLI_HUGEPAGES_H
#define PAGEDKV_CLI_HUGEPAGES_H

#include <stddef.h>
#include <stdint.h>

/*
 * Bytes of [start, start + bytes) on huge pages, or -1 if the system does not
 * say.  It says it per mapping, so a mapping that reaches over the range counts
 * whole, up to the length of the range.
 */
int64_t hugepages_bytes(const void *start, size_t bytes);

/* Asks the system to keep huge pages off untouched memory; page-aligned. */
void hugepages_refuse(void *start, size_t bytes);

/* The system's setting, "always", "madvise" or "never"; "unknown" if it does not say. */
const char *hugepages_setting(void);

#endif
