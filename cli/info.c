/* `pagedkv info`: what this build and this machine have. */
#define _POSIX_C_SOURCE 200809L

#include <getopt.h>
#include <string.h>

#include "bench_machine.h"
#include "device.h"
#include "limit.h"

typedef struct info_report {
    bench_machine machine;
    int           threads;
    double        limit_one_bytes_per_s; /* 0: not measured */
    double        limit_all_bytes_per_s;
    int32_t       n_devices;
    bool          has_cuda; /* the first one could be opened; cuda is about it */
    pkv_cuda_info cuda;
    pkv_error     cuda_err; /* why not */
    int           n_driver; /* devices of the driver, whatever the library says */
    int           driver_code;
} info_report;

static int print_help(void)
{
    printf("Usage: pagedkv info [--json FILE]\n"
           "\n"
           "Prints version, instruction sets, threads, memory, and how fast this machine\n"
           "copies: the best plain contiguous copy, the limit that speeds are compared with.\n"
           "\n"
           "  --json FILE  write JSON to FILE; - is standard output, and then the table goes\n"
           "               to standard error\n"
           "  -h, --help   this text\n");
    return CLI_OK;
}

/* An exit status; *done where there is nothing left to do. */
static int parse_options(int argc, char **argv, const char **json_path, bool *done)
{
    static const struct option long_options[] = {
        {"json", required_argument, NULL, CLI_FIRST_LONG_OPTION},
        {"help", no_argument, NULL, 'h'},
        {NULL, 0, NULL, 0},
    };
    int status = CLI_OK;

    while (cli_next_option(argc, argv, long_options, print_help, done, &status) != 0) {
        *json_path = optarg;
    }
    if (*done || status != CLI_OK) {
        return status;
    }
    return optind < argc ? cli_extra_argument(argv) : CLI_OK;
}

/* Two buffers of 256 MiB on huge pages, or less on a small machine. */
static int measure_limit(info_report *info)
{
    uint64_t   bytes = (uint64_t)256 << 20;
    pkv_memory dst = {.struct_size = sizeof dst};
    pkv_memory src = {.struct_size = sizeof src};

    while (info->machine.memory_bytes > 0 && bytes > (uint64_t)info->machine.memory_bytes / 8) {
        bytes /= 2;
    }
    if (pkv_memory_alloc(&dst, bytes, PKV_MEMORY_HUGE_PAGES) != PKV_OK) {
        return cli_no_memory("the copy limit");
    }
    if (pkv_memory_alloc(&src, bytes, PKV_MEMORY_HUGE_PAGES) != PKV_OK) {
        pkv_memory_free(&dst);
        return cli_no_memory("the copy limit");
    }
    size_t n = (size_t)bytes;
    memset(dst.data, 1, n);
    memset(src.data, 2, n);
    info->limit_one_bytes_per_s = limit_measure(dst.data, n, src.data, n, 1);
    bench_machine_pin(&info->machine, info->threads);
    info->limit_all_bytes_per_s = limit_measure(dst.data, n, src.data, n, info->threads);
    pkv_memory_free(&dst);
    pkv_memory_free(&src);
    return CLI_OK;
}

static void print_isas(FILE *out)
{
    const char *name;

    fprintf(out, "instruction sets ");
    for (int32_t i = 0; (name = pkv_isa_name(i)) != NULL; i++) {
        const char *state = "";
        if (strcmp(name, pkv_isa_current()) == 0) {
            state = " (chosen)";
        } else if (!pkv_isa_usable(i)) {
            state = " (not on this processor)";
        }
        fprintf(out, "%s%s%s", i > 0 ? ", " : "", name, state);
    }
    fprintf(out, "\n");
}

/* Is a device there?  Whatever is not is no failure here. */
static void look_for_cuda(info_report *info)
{
    pkv_cuda *cuda = NULL;

    info->driver_code = gpu_count(&info->n_driver);
    info->cuda.struct_size = sizeof info->cuda;
    if (pkv_cuda_device_count(&info->n_devices, &info->cuda_err) == PKV_OK &&
        pkv_cuda_open(&cuda, 0, &info->cuda_err) == PKV_OK) {
        info->has_cuda = pkv_cuda_get_info(cuda, &info->cuda) == PKV_OK;
    }
    pkv_cuda_close(cuda);
}

static void print_cuda(const info_report *info, FILE *out)
{
    const pkv_cuda_info *cuda = &info->cuda;
    char                 line[512];

    if (info->has_cuda) {
        fprintf(out, "CUDA             %s, compute capability %d.%d,\n"
                     "                 %d multiprocessors, %.1f GiB; driver %d.%d; %d device%s\n",
                cuda->name, cuda->compute_major, cuda->compute_minor, cuda->n_multiprocessors,
                (double)cuda->memory_bytes / (double)(1 << 30), cuda->driver_version / 1000,
                cuda->driver_version % 1000 / 10, info->n_devices, info->n_devices == 1 ? "" : "s");
        return;
    }
    pkv_error_format(&info->cuda_err, line, sizeof line);
    fprintf(out, "CUDA             %s;\n", line);
    if (info->driver_code != 0) {
        fprintf(out, "                 %s\n", gpu_error_text(NULL, info->driver_code));
    } else {
        fprintf(out, "                 the driver has %d device%s\n", info->n_driver,
                info->n_driver == 1 ? "" : "s");
    }
}

static void print_table(const info_report *info, FILE *out)
{
    const bench_machine *machine = &info->machine;

    fprintf(out, "pagedkv          %s\n", pkv_version_string());
    print_isas(out);
    fprintf(out, "threads          %d\n", info->threads);
    fprintf(out, "processor        %s, %lld online\n", machine->cpu, (long long)machine->n_online);
    fprintf(out, "memory           %.1f GiB in pages of %lld bytes\n",
            (double)machine->memory_bytes / (double)(1 << 30), (long long)machine->page_bytes);
    fprintf(out, "huge pages       %s\n", machine->huge_pages);
    fprintf(out, "copy limit       %.1f GB/s with one thread, %.1f GB/s with all, read + written\n",
            info->limit_one_bytes_per_s / 1e9, info->limit_all_bytes_per_s / 1e9);
    print_cuda(info, out);
}

/* Names of the instruction sets that are built in, or usable ones only. */
static json_t *isas_to_json(bool usable_only)
{
    json_t     *array = json_array();
    const char *name;

    for (int32_t i = 0; (name = pkv_isa_name(i)) != NULL; i++) {
        if ((!usable_only || pkv_isa_usable(i)) &&
            json_array_append_new(array, json_string(name)) != 0) {
            json_decref(array);
            return NULL;
        }
    }
    return array;
}

/* For each element type those to which it is converted. */
static json_t *conversions_to_json(void)
{
    json_t     *object = json_object();
    const char *from, *to;

    for (pkv_dtype f = 1; object != NULL && (from = pkv_dtype_name(f)) != NULL; f++) {
        json_t *array = json_array();
        for (pkv_dtype t = 1; (to = pkv_dtype_name(t)) != NULL; t++) {
            if (pkv_converts(f, t) && json_array_append_new(array, json_string(to)) != 0) {
                json_decref(array);
                array = NULL;
            }
        }
        if (json_object_set_new(object, from, array) != 0) {
            json_decref(object);
            object = NULL;
        }
    }
    return object;
}

static json_t *cuda_to_json(const info_report *info)
{
    const pkv_cuda_info *cuda = &info->cuda;

    if (!info->has_cuda) {
        return json_null();
    }
    return json_pack("{s:s, s:o, s:i, s:I, s:I, s:i, s:i}", "name", cuda->name,
                     "compute_capability",
                     json_sprintf("%d.%d", cuda->compute_major, cuda->compute_minor),
                     "multiprocessors", cuda->n_multiprocessors, "memory_bytes",
                     (json_int_t)cuda->memory_bytes, "l2_bytes", (json_int_t)cuda->l2_bytes,
                     "driver_version", cuda->driver_version, "devices", info->n_devices);
}

static json_t *to_json(const info_report *info)
{
    const bench_machine *machine = &info->machine;

    return json_pack("{s:s, s:o, s:o, s:s, s:o, s:i, s:s, s:I, s:I, s:I, s:s, s:f, s:f, s:o}",
                     "version", pkv_version_string(),
                     "isa_built", isas_to_json(false),
                     "isa_usable", isas_to_json(true),
                     "isa", pkv_isa_current(),
                     "conversions", conversions_to_json(),
                     "threads", info->threads,
                     "cpu", machine->cpu,
                     "cpus_online", (json_int_t)machine->n_online,
                     "memory_bytes", (json_int_t)machine->memory_bytes,
                     "page_bytes", (json_int_t)machine->page_bytes,
                     "huge_pages_setting", machine->huge_pages,
                     "copy_limit_bytes_per_s", info->limit_all_bytes_per_s,
                     "copy_limit_one_thread_bytes_per_s", info->limit_one_bytes_per_s,
                     "cuda_device", cuda_to_json(info));
}

int cmd_info(int argc, char **argv)
{
    info_report info = {.threads = pkv_default_threads()};
    const char *json_path = NULL;
    bool        done = false;

    int status = parse_options(argc, argv, &json_path, &done);
    if (status != CLI_OK || done) {
        return status;
    }
    status = cli_probe_output(json_path);
    if (status != CLI_OK) {
        return status;
    }
    bench_machine_read(&info.machine);
    look_for_cuda(&info);
    status = measure_limit(&info);
    if (status != CLI_OK) {
        return status;
    }
    print_table(&info, cli_table_stream(json_path));
    return json_path != NULL ? cli_write_json(to_json(&info), json_path) : CLI_OK;
}
