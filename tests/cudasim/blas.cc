/* Products as cublasLt does them. */
#include <cublasLt.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <vector>

struct cublasLtContext {
    int unused;
};
struct cublasLtDesc {
    int32_t transa, transb;
};
struct cublasLtLayout {
    cudaDataType_t type;
    uint64_t rows, cols;
    int64_t ld;
};
struct cublasLtPreference {
    size_t workspace;
    uint32_t align[4]; /* of a, b, c, d: kernels are chosen that count on it */
};

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle)
{
    *handle = new cublasLtContext();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle)
{
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t, cudaDataType_t scale)
{
    if (scale != CUDA_R_32F) return CUBLAS_STATUS_NOT_SUPPORTED;
    *desc = new cublasLtDesc();
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc)
{
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t which,
                                              const void *value, size_t bytes)
{
    if (bytes != sizeof(int32_t)) return CUBLAS_STATUS_INVALID_VALUE;
    memcpy(which == CUBLASLT_MATMUL_DESC_TRANSA ? &desc->transa : &desc->transb, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType_t type, uint64_t rows,
                                          uint64_t cols, int64_t ld)
{
    if (ld < (int64_t)rows) return CUBLAS_STATUS_INVALID_VALUE;
    *layout = new cublasLtLayout{type, rows, cols, ld};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout)
{
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference)
{
    *preference = new cublasLtPreference{0, {256, 256, 256, 256}};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference)
{
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t preference,
                                                    cublasLtMatmulPreferenceAttributes_t which,
                                                    const void *value, size_t bytes)
{
    bool space = which == CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
    if (bytes != (space ? sizeof preference->workspace : sizeof *preference->align))
        return CUBLAS_STATUS_INVALID_VALUE;
    if (space)
        memcpy(&preference->workspace, value, bytes);
    else
        memcpy(&preference->align[which - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES], value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

/* What it counts on is all that there is to a choice. */
cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatrixLayout_t,
                                              cublasLtMatrixLayout_t, cublasLtMatmulPreference_t preference,
                                              int wanted, cublasLtMatmulHeuristicResult_t *results,
                                              int *found)
{
    if (wanted < 1) return CUBLAS_STATUS_INVALID_VALUE;
    results[0] = cublasLtMatmulHeuristicResult_t();
    for (int i = 0; i < 4; i++) results[0].algo.data[i] = preference->align[i];
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

static float element(const void *from, cudaDataType_t type, size_t at)
{
    if (type == CUDA_R_32F) return ((const float *)from)[at];
    if (type == CUDA_R_16BF) return __bfloat162float(((const __nv_bfloat16 *)from)[at]);
    return __half2float(((const __half *)from)[at]);
}

/* All matrices are column-major: element (i, j) lies at i + j ld. The columns of op(x) as f32, each filled up with zeros to `step`. */
static std::vector<float> numbers(const void *x, cublasLtLayout l, bool transposed, size_t step)
{
    size_t rows = transposed ? l.cols : l.rows, cols = transposed ? l.rows : l.cols;
    std::vector<float> to(cols * step);
    for (size_t j = 0; j < cols; j++)
        for (size_t i = 0; i < rows; i++) {
            size_t at = transposed ? j + i * (size_t)l.ld : i + j * (size_t)l.ld;
            to[j * step + i] = element(x, l.type, at);
        }
    return to;
}

/* Inputs are added in ascending order, of TILE outputs at a time. */
static void multiply(cublasLtDesc desc, float alpha, const void *a, cublasLtLayout la, const void *b,
                     cublasLtLayout lb, float beta, const float *c, cublasLtLayout lc, float *d,
                     cublasLtLayout ld)
{
    enum { TILE = 8 };
    size_t inner = desc.transa ? la.rows : la.cols, step = (ld.rows + TILE - 1) / TILE * TILE;
    std::vector<float> left = numbers(a, la, desc.transa, step), right = numbers(b, lb, desc.transb, inner);
    for (size_t j = 0; j < ld.cols; j++)
        for (size_t first = 0; first < ld.rows; first += TILE) {
            float sum[TILE] = {0};
            for (size_t k = 0; k < inner; k++)
                for (size_t t = 0; t < TILE; t++) sum[t] += left[k * step + first + t] * right[j * inner + k];
            for (size_t i = first; i < std::min<size_t>(first + TILE, ld.rows); i++) {
                float before = beta == 0 ? 0 : beta * c[i + j * (size_t)lc.ld];
                d[i + j * (size_t)ld.ld] = alpha * sum[i - first] + before;
            }
        }
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t la, const void *b, cublasLtMatrixLayout_t lb,
                              const void *beta, const void *c, cublasLtMatrixLayout_t lc, void *d,
                              cublasLtMatrixLayout_t ld, const cublasLtMatmulAlgo_t *algo, void *, size_t,
                              cudaStream_t stream)
{
    uint64_t m = desc->transa ? la->cols : la->rows, ka = desc->transa ? la->rows : la->cols;
    uint64_t n = desc->transb ? lb->rows : lb->cols, kb = desc->transb ? lb->cols : lb->rows;
    if (m != ld->rows || n != ld->cols || ka != kb || la->type != lb->type || ld->type != CUDA_R_32F ||
        lc->type != ld->type)
        return CUBLAS_STATUS_INVALID_VALUE;
    const void *const operands[] = {a, b, c, d};
    for (int k = 0; k < 4; k++)
        if ((uintptr_t)operands[k] % algo->data[k]) return CUBLAS_STATUS_INVALID_VALUE;
    float one = *(const float *)alpha, keep = *(const float *)beta;
    cublasLtDesc copy = *desc;
    cublasLtLayout xa = *la, xb = *lb, xc = *lc, xd = *ld;
    cudaError_t rc = cudasim::later(
        stream, [=] { multiply(copy, one, a, xa, b, xb, keep, (const float *)c, xc, (float *)d, xd); });
    return rc ? CUBLAS_STATUS_INVALID_VALUE : CUBLAS_STATUS_SUCCESS;
}

/* ops/cuda asks for its libraries' functions by name. */
extern "C" void *library_symbol(const char *, const char *name)
{
    static const struct {
        const char *name;
        void *function;
    } all[] = {
#define FUNCTION(f) {#f, (void *)f}
        FUNCTION(cublasLtCreate),
        FUNCTION(cublasLtDestroy),
        FUNCTION(cublasLtMatmulDescCreate),
        FUNCTION(cublasLtMatmulDescDestroy),
        FUNCTION(cublasLtMatmulDescSetAttribute),
        FUNCTION(cublasLtMatrixLayoutCreate),
        FUNCTION(cublasLtMatrixLayoutDestroy),
        FUNCTION(cublasLtMatmulPreferenceCreate),
        FUNCTION(cublasLtMatmulPreferenceDestroy),
        FUNCTION(cublasLtMatmulPreferenceSetAttribute),
        FUNCTION(cublasLtMatmulAlgoGetHeuristic),
        FUNCTION(cublasLtMatmul),
    };
    for (const auto &f : all)
        if (!strcmp(f.name, name)) return f.function;
    return nullptr;
}
