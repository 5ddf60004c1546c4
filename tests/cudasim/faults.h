/* Faulty kernels for the emulation's own test. */
#ifndef CUDASIM_FAULTS_H
#define CUDASIM_FAULTS_H

enum { FAULT_THREADS = 128 };
enum fault_kernel {
    FAULT_NONE_NEIGHBOUR,
    FAULT_NO_BARRIER,
    FAULT_NONE_ROUNDS,
    FAULT_NO_SECOND_BARRIER,
    FAULT_LOST_UPDATE,
    FAULT_HALF_BARRIER,
    FAULT_HALF_WARP,
    FAULT_BEYOND_SHARED,
    FAULT_BEYOND_GLOBAL,
    FAULT_NONE_WARP_SUM,
};

#ifdef __cplusplus
extern "C" {
#endif
/* Two blocks of FAULT_THREADS over the same from [FAULT_THREADS] to to; a cudaError_t. */
int fault_run(enum fault_kernel which, const float *from, float *to);
/* A host that changes what it gave to an asynchronous copy: out gets what arrived. */
int fault_host_race(float *out);
#ifdef __cplusplus
}
#endif
#endif
