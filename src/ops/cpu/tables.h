/* The tables of cpu/, one a source file. Only what the machine offers may be called. */
#ifndef MPISERVE_OPS_TABLES_H
#define MPISERVE_OPS_TABLES_H

#include "mpiserve/ops.h"

extern const struct ops ops_portable;
#ifdef __x86_64__
extern const struct ops ops_avx2, ops_avx512, ops_avx512bf16;
#endif

#endif
