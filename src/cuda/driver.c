/* Finds the CUDA driver's functions. */
#include "driver.h"

#include <dlfcn.h>
#include <string.h>

pkv_status pkv_i_fail_driver(pkv_error *err, pkv_status code, pkv_i_cu_result detail,
                             const char *what)
{
    pkv_i_fail(err, code, what);
    if (err != NULL) {
        err->detail = detail;
    }
    return code;
}

/* ISO C has no cast from an object's address to a function's: its bytes are copied. */
static bool find_function(void *library, const char *symbol, void *function, size_t n_bytes)
{
    void *address = dlsym(library, symbol);
    memcpy(function, &address, n_bytes);
    return address != NULL;
}

static bool find_functions(pkv_i_driver *driver)
{
    bool found = true;
#define FIND(name, symbol, parameters) \
    found = find_function(driver->library, #symbol, &driver->name, sizeof driver->name) && found;
    PKV_I_DRIVER_FUNCTIONS(FIND)
#undef FIND
#define FIND(name, symbol, parameters) \
    (void)find_function(driver->library, #symbol, &driver->name, sizeof driver->name);
    PKV_I_DRIVER_OPTIONAL(FIND)
#undef FIND
    return found;
}

static pkv_status start(const pkv_i_driver *driver, pkv_error *err)
{
    pkv_i_cu_result result = driver->init(0);
    switch (result) {
    case 0: return PKV_OK;
    case PKV_I_CU_STUB_LIBRARY:
    case PKV_I_CU_SYSTEM_DRIVER_MISMATCH:
    case PKV_I_CU_COMPAT_NOT_SUPPORTED_ON_DEVICE:
        return pkv_i_fail_driver(err, PKV_E_UNSUPPORTED, result,
                                 "the CUDA driver does not fit the system or is a stub");
    case PKV_I_CU_NO_DEVICE:
        return pkv_i_fail_driver(err, PKV_E_DEVICE, result, "the CUDA driver has no device");
    default:
        return pkv_i_fail_driver(err, PKV_E_DEVICE, result, "the CUDA driver does not start");
    }
}

pkv_status pkv_i_driver_open(pkv_i_driver *driver, pkv_error *err)
{
    memset(driver, 0, sizeof *driver);
    /* It stays mapped when it is closed: it may have threads of its own. */
    driver->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
    if (driver->library == NULL) {
        return pkv_i_fail(err, PKV_E_UNSUPPORTED, "there is no CUDA driver");
    }
    pkv_status status = find_functions(driver)
                            ? start(driver, err)
                            : pkv_i_fail(err, PKV_E_UNSUPPORTED, "the CUDA driver is too old");
    if (status != PKV_OK) {
        pkv_i_driver_close(driver);
    }
    return status;
}

void pkv_i_driver_close(pkv_i_driver *driver)
{
    dlclose(driver->library);
    memset(driver, 0, sizeof *driver);
}
