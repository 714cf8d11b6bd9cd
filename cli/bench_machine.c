/* The machine as the system describes it. */
#define _GNU_SOURCE

#include "bench_machine.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "hugepages.h"

#if defined(_OPENMP) && defined(__linux__)
#include <omp.h>
#define HAVE_PIN 1
#else
#define HAVE_PIN 0
#endif

static void read_cpu_model(char *out, size_t cap_bytes)
{
    FILE *file = fopen("/proc/cpuinfo", "re");
    char  line[256];

    snprintf(out, cap_bytes, "unknown");
    while (file != NULL && fgets(line, sizeof line, file) != NULL) {
        const char *value = strchr(line, ':');
        if (strncmp(line, "model name", strlen("model name")) == 0 && value != NULL) {
            value += 1 + strspn(value + 1, " ");
            snprintf(out, cap_bytes, "%.*s", (int)strcspn(value, "\n"), value);
            break;
        }
    }
    if (file != NULL) {
        fclose(file);
    }
}

#if HAVE_PIN

static void read_cpus(bench_machine *machine)
{
    cpu_set_t set;

    machine->n_cpus = 0;
    if (sched_getaffinity(0, sizeof set, &set) != 0) {
        return;
    }
    for (int cpu = 0; cpu < CPU_SETSIZE && machine->n_cpus < BENCH_MAX_CPUS; cpu++) {
        if (CPU_ISSET((size_t)cpu, &set)) {
            machine->cpus[machine->n_cpus++] = cpu;
        }
    }
}

static void pin_to(int cpu)
{
    cpu_set_t set;

    CPU_ZERO(&set);
    CPU_SET((size_t)cpu, &set);
    /* A refusal leaves the thread where it was: noisier, not wrong. */
    (void)sched_setaffinity(0, sizeof set, &set);
}

void bench_machine_pin(const bench_machine *machine, int threads)
{
    if (threads > 1 && threads <= machine->n_cpus) {
#pragma omp parallel num_threads(threads)
        pin_to(machine->cpus[omp_get_thread_num()]);
    }
}

#else

static void read_cpus(bench_machine *machine)
{
    machine->n_cpus = 0;
}

void bench_machine_pin(const bench_machine *machine, int threads)
{
    (void)machine;
    (void)threads;
}

#endif

void bench_machine_read(bench_machine *machine)
{
    read_cpu_model(machine->cpu, sizeof machine->cpu);
    machine->n_online = sysconf(_SC_NPROCESSORS_ONLN);
    machine->memory_bytes = (int64_t)cli_memory_bytes();
    machine->page_bytes = sysconf(_SC_PAGESIZE);
    machine->huge_pages = hugepages_setting();
    read_cpus(machine);
}
