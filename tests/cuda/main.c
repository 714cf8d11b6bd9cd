#include "main.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

int cuda_absent(void)
{
    int n = 0;
    int code = gpu_count(&n);
    if (code == 0 && n > 0) {
        return 0;
    }
    fprintf(stderr, "no GPU: %s\n", code != 0 ? gpu_error_text(NULL, code) : "no device");
    return getenv("PAGEDKV_CUDA_NEEDED") != NULL ? 1 : 77;
}

bool fake_here(fake_counts *out)
{
    void *library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    assert_non_null(library);
    void *address = dlsym(library, "fake_cuda_counts");
    void (*count)(fake_counts *);
    memcpy(&count, &address, sizeof count);
    if (count != NULL) {
        count(out);
    }
    dlclose(library);
    return count != NULL;
}

void needs_fake(void)
{
    fake_counts counts;
    if (!fake_here(&counts)) {
        skip();
    }
}

static void name_fault(const char *name, char *variable, size_t room)
{
    snprintf(variable, room, "PAGEDKV_FAKE_CUDA_%s", name);
}

void fault_set(const char *name, int64_t value)
{
    char variable[64], text[32];
    name_fault(name, variable, sizeof variable);
    snprintf(text, sizeof text, "%lld", (long long)value);
    assert_return_code(setenv(variable, text, 1), 0);
}

void fault_clear(const char *name)
{
    char variable[64];
    name_fault(name, variable, sizeof variable);
    assert_return_code(unsetenv(variable), 0);
}

void expect_gpu_at(const gpu *g, int code, const char *file, int line)
{
    if (code != 0) {
        fail_msg("%s:%d: code %d, %s", file, line, code, gpu_error_text(g, code));
    }
}
