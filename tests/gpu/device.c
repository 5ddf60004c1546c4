/* What tests ask of the emulation (cudasim.h), where the device is a real one: threads run in the order that they run in, no call fails
 * on demand, and memory is not counted. */
#include "../cudasim/cudasim.h"

int cudasim_here(void)
{
    return 0;
}

void cudasim_order(uint64_t seed)
{
    (void)seed;
}

void cudasim_fail(uint64_t n, int error)
{
    (void)n;
    (void)error;
}

size_t cudasim_allocated(void)
{
    return 0;
}
