/* Products: cublasLt. y [rows, n_out] = x [rows, n_in] W^T, all row-major; the library's matrices are column-major, so it is told
 * y^T [n_out, rows] = (W as it lies)^T x^T. Sums are f32 whatever the inputs. Which of its kernels to take is asked once per shape. */
#include "library.h"
#include "table.h"

#include <cublasLt.h>
#include <stdio.h>
#include <stdlib.h>

/* The library of the major version whose header this is. */
#define TEXT_OF_(x)      #x
#define TEXT_OF(x)       TEXT_OF_(x)
#define CUBLASLT_LIBRARY "libcublasLt.so." TEXT_OF(CUBLAS_VER_MAJOR)

enum { PLANS = 4096, MOST_ROWS = 65535 /* of a grid */ };

struct lt { /* what is used of the library */
    decltype(&cublasLtCreate) create;
    decltype(&cublasLtDestroy) destroy;
    decltype(&cublasLtMatmulDescCreate) desc_create;
    decltype(&cublasLtMatmulDescDestroy) desc_destroy;
    decltype(&cublasLtMatmulDescSetAttribute) desc_set;
    decltype(&cublasLtMatrixLayoutCreate) layout_create;
    decltype(&cublasLtMatrixLayoutDestroy) layout_destroy;
    decltype(&cublasLtMatmulPreferenceCreate) preference_create;
    decltype(&cublasLtMatmulPreferenceDestroy) preference_destroy;
    decltype(&cublasLtMatmulPreferenceSetAttribute) preference_set;
    decltype(&cublasLtMatmulAlgoGetHeuristic) heuristic;
    decltype(&cublasLtMatmul) matmul;
};
struct shape {
    u32 n_out, n_in, rows;
    enum dtype dtype;
    size_t ld_x, ld_y;
    u32 align[3]; /* of w, x, y in bytes: the library's kernels count on what they are told */
};
struct plan { /* a shape's descriptors and the library's choice; empty while y is NULL */
    struct shape shape;
    cublasLtMatrixLayout_t w, x, y;
    cublasLtMatmulAlgo_t algo;
};
struct blas {
    struct lt lt;
    cublasLtHandle_t handle;
    cublasLtMatmulDesc_t desc;
    cublasLtMatmulPreference_t preference;
    void *workspace;
    struct plan *plans; /* by hash; a shape that finds its place taken takes it over */
};

static int resolve(struct lt *lt, struct error *err)
{
    static const char library[] = CUBLASLT_LIBRARY;
    struct {
        const char *name;
        void *at;
    } all[] = {
        {"cublasLtCreate", &lt->create},
        {"cublasLtDestroy", &lt->destroy},
        {"cublasLtMatmulDescCreate", &lt->desc_create},
        {"cublasLtMatmulDescDestroy", &lt->desc_destroy},
        {"cublasLtMatmulDescSetAttribute", &lt->desc_set},
        {"cublasLtMatrixLayoutCreate", &lt->layout_create},
        {"cublasLtMatrixLayoutDestroy", &lt->layout_destroy},
        {"cublasLtMatmulPreferenceCreate", &lt->preference_create},
        {"cublasLtMatmulPreferenceDestroy", &lt->preference_destroy},
        {"cublasLtMatmulPreferenceSetAttribute", &lt->preference_set},
        {"cublasLtMatmulAlgoGetHeuristic", &lt->heuristic},
        {"cublasLtMatmul", &lt->matmul},
    };
    for (auto &f : all) {
        void *symbol = library_symbol(library, f.name);
        if (!symbol)
            return error_set(
                err, ERR_NOT_FOUND, library,
                "cannot be opened, or has no %s: install CUDA's cuBLAS or add its folder to LD_LIBRARY_PATH",
                f.name);
        memcpy(f.at, &symbol, sizeof symbol);
    }
    return 0;
}

int blas_open(struct device *d, struct error *err)
{
    struct blas *b = (struct blas *)calloc(1, sizeof *b);
    *device_blas(d) = b;
    if (!b || !(b->plans = (struct plan *)calloc(PLANS, sizeof *b->plans)))
        return error_set(err, ERR_MEMORY, "cublasLt", "no memory");
    int rc = resolve(&b->lt, err);
    if (rc) return rc;
    b->workspace = device_alloc(d, WORKSPACE_BYTES, err);
    if (!b->workspace) return ERR_MEMORY;
    const i32 transposed = CUBLAS_OP_T, plain = CUBLAS_OP_N;
    const size_t most = WORKSPACE_BYTES;
    int status = b->lt.create(&b->handle);
    if (!status) status = b->lt.desc_create(&b->desc, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (!status)
        status = b->lt.desc_set(b->desc, CUBLASLT_MATMUL_DESC_TRANSA, &transposed, sizeof transposed);
    if (!status) status = b->lt.desc_set(b->desc, CUBLASLT_MATMUL_DESC_TRANSB, &plain, sizeof plain);
    if (!status) status = b->lt.preference_create(&b->preference);
    if (!status)
        status =
            b->lt.preference_set(b->preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
    return status ? error_set(err, ERR_STATE, "cublasLt", "does not start: status %d", status) : 0;
}

static void plan_clear(const struct lt *lt, struct plan *p)
{
    if (p->w) lt->layout_destroy(p->w);
    if (p->x) lt->layout_destroy(p->x);
    if (p->y) lt->layout_destroy(p->y);
    memset((void *)p, 0, sizeof *p);
}

void blas_close(struct device *d)
{
    struct blas *b = *device_blas(d);
    if (!b) return;
    for (u32 i = 0; b->plans && i < PLANS; i++) plan_clear(&b->lt, &b->plans[i]);
    if (b->preference) b->lt.preference_destroy(b->preference);
    if (b->desc) b->lt.desc_destroy(b->desc);
    if (b->handle) b->lt.destroy(b->handle);
    device_free(d, b->workspace);
    free(b->plans);
    free(b);
    *device_blas(d) = NULL;
}

/* The library looks for a kernel that takes these alignments; c is y. */
static int tell_alignments(const struct blas *b, const struct shape *s)
{
    static const cublasLtMatmulPreferenceAttributes_t which[] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    int status = 0;
    for (u32 i = 0; i < 4 && !status; i++)
        status = b->lt.preference_set(b->preference, which[i], &s->align[i < 2 ? i : 2], sizeof(u32));
    return status;
}

static int plan_make(const struct blas *b, struct plan *p, const struct shape *s)
{
    cudaDataType_t type = s->dtype == DTYPE_F32    ? CUDA_R_32F
                          : s->dtype == DTYPE_BF16 ? CUDA_R_16BF
                                                   : CUDA_R_16F;
    cublasLtMatmulHeuristicResult_t best;
    int found = 0, status = tell_alignments(b, s);
    if (!status) status = b->lt.layout_create(&p->w, type, s->n_in, s->n_out, s->n_in);
    if (!status) status = b->lt.layout_create(&p->x, type, s->n_in, s->rows, (int64_t)s->ld_x);
    if (!status) status = b->lt.layout_create(&p->y, CUDA_R_32F, s->n_out, s->rows, (int64_t)s->ld_y);
    if (!status)
        status = b->lt.heuristic(b->handle, b->desc, p->w, p->x, p->y, p->y, b->preference, 1, &best, &found);
    if (!status && !found) status = CUBLAS_STATUS_NOT_SUPPORTED;
    p->shape = *s;
    if (!status) p->algo = best.algo;
    return status;
}

static int plan_find(struct blas *b, const struct shape *s, struct plan **out)
{
    u64 h = 0;
    const u64 parts[] = {s->n_out, s->n_in,     s->rows,     (u64)s->dtype, s->ld_x,
                         s->ld_y,  s->align[0], s->align[1], s->align[2]};
    for (u64 part : parts) h = (h ^ part) * 0x9E3779B97F4A7C15ull;
    struct plan *p = *out = &b->plans[(h >> 32) % PLANS];
    const struct shape *q = &p->shape;
    if (p->y && q->n_out == s->n_out && q->n_in == s->n_in && q->rows == s->rows && q->dtype == s->dtype &&
        q->ld_x == s->ld_x && q->ld_y == s->ld_y && !memcmp(q->align, s->align, sizeof q->align))
        return 0;
    plan_clear(&b->lt, p);
    int status = plan_make(b, p, s);
    if (status) plan_clear(&b->lt, p);
    return status;
}

/* The largest power of two, 256 at most, that divides the address. */
static u32 alignment(const void *at)
{
    u32 a = 256;
    while ((uintptr_t)at % a) a /= 2;
    return a;
}

/* f32 for shorter weights is rounded first, as many rows at a time as there is room for. */
static void linear_shortened(const struct linear_args *a, struct share s)
{
    struct linear_args part = *a;
    void *x = device_partial(s.device);
    u32 most = MIN_OF((u32)(PARTIAL_BYTES / (a->w->n_in * dtype_bytes(a->w->dtype))), (u32)MOST_ROWS);
    for (u32 row = 0; row < a->rows; row += part.rows) {
        part.rows = MIN_OF(most, a->rows - row);
        shorten_rows(s.device, (const float *)a->x + row * a->ld_x, a->ld_x, x, a->w->dtype, part.rows,
                     a->w->n_in);
        part.x = x;
        part.x_dtype = a->w->dtype;
        part.ld_x = a->w->n_in;
        part.y = a->y + row * a->ld_y;
        linear(&part, s);
    }
}

void linear(const struct linear_args *a, struct share s)
{
    struct blas *b = *device_blas(s.device);
    const float one = 1, keep = a->add || a->bias ? 1 : 0;
    struct shape shape = {a->w->n_out,
                          a->w->n_in,
                          a->rows,
                          a->w->dtype,
                          a->ld_x,
                          a->ld_y,
                          {alignment(a->w->data), alignment(a->x), alignment(a->y)}};
    struct plan *p;
    if (!a->rows || !device_works(s.device)) return;
    if (a->x_dtype != a->w->dtype) {
        BUG_ON(a->x_dtype != DTYPE_F32);
        linear_shortened(a, s);
        return;
    }
    if (a->bias) bias_rows(s.device, a->bias, a->y, a->rows, a->w->n_out, a->ld_y, a->add);
    int status = plan_find(b, &shape, &p);
    if (!status)
        status = b->lt.matmul(b->handle, b->desc, &one, a->w->data, p->w, a->x, p->x, &keep, a->y, p->y, a->y,
                              p->y, &p->algo, b->workspace, WORKSPACE_BYTES, device_stream(s.device));
    if (status) device_failed_product(s.device, status, a->w->n_out, a->w->n_in, a->rows);
}
