/* A suite's program where there may be no GPU: the linker lets its main() wait here. */
#include <stdio.h>

#include "mirror.h"

int __real_main(void);
int __wrap_main(void);

int __wrap_main(void)
{
    const int absent = cuda_absent();
    if (absent != 0) {
        return absent;
    }
    const int failed = __real_main();
    printf("%llu calls were made on the device\n", (unsigned long long)mirror_n_calls());
    return failed != 0 ? failed : mirror_n_calls() == 0;
}
