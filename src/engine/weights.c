#include "engine/weights.h"
#include "engine/stored.h"
#include "mpiserve/device.h"
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum {
    MAX_THREADS = 16,
    AHEAD = 64, /* ranges between the one that is read and the one that storage is asked for: 16 MiB */
};

int weights_plan(const struct model_config *c, const struct shard *part, const struct model_files *f,
                 const struct weights_place *place, size_t *bytes, struct error *err)
{
    struct layout l;
    int rc = layout_build(&l, c, part, f, place, err);
    if (rc) return rc;
    *bytes = l.bytes;
    layout_release(&l);
    return 0;
}

/* ---- filling -------------------------------------------------------------------------------------------------
 * The work is a list of row ranges; threads take the next one, read it and pack it. Ranges do not overlap in the
 * image, so the threads share nothing but the list's position. */
struct range {
    u32 slot, part;
    u32 row0;   /* in the slot, of the part's first row */
    u32 row, n; /* of the part */
    u64 place;  /* in the files */
};
struct reader { /* a thread's own */
    struct stored_room room;
    struct device_lane *lane; /* NULL: the image is the host's */
    struct error err;
    int rc;
};
struct filler {
    const struct model_files *files;
    const struct layout *layout;
    const struct weights_place *place;
    u8 *image;
    _Atomic u64 *progress;
    struct range *ranges;
    u32 n, cap;
    _Atomic u32 next;
    _Atomic bool failed;
    struct {
        _Atomic u64 done;
        u64 of, start_ns, said_ns, said; /* said*: the first thread's */
    } bytes;
    struct reader readers[MAX_THREADS];
};

static const struct model_files *files_of(const struct filler *x, const struct slot_part *p)
{
    return p->files ? p->files : x->files;
}

static float widened(const void *from, enum dtype t, size_t i)
{
    if (t == DTYPE_F32) return ((const float *)from)[i];
    u16 h = ((const u16 *)from)[i];
    return t == DTYPE_BF16 ? f32_from_bf16(h) : f32_from_f16(h);
}

/* Rows [row, row + n) of the slot, from numbers of a type. */
static void store(u8 *image, const struct slot *s, u32 row, u32 n, const void *numbers, enum dtype from)
{
    void *at = image + s->offset;
    float *wide = at;
    size_t first = (size_t)row * s->n_in, count = (size_t)n * s->n_in;
    if (s->kind == SLOT_PANELS)
        pack_rows(at, s->dtype, s->n_out, s->n_in, row, n, numbers, from);
    else if (s->dtype == from)
        memcpy((u8 *)at + first * dtype_bytes(from), numbers, count * dtype_bytes(from));
    else
        for (size_t i = 0; i < count; i++) wide[first + i] = widened(numbers, from, i);
    for (size_t i = 0; i < count && s->plus_one; i++) wide[first + i] += 1;
}

static void convert(void *to, enum dtype type, const void *numbers, enum dtype from, size_t count)
{
    if (type == from) {
        memcpy(to, numbers, count * dtype_bytes(from));
        return;
    }
    for (size_t i = 0; i < count; i++) {
        float v = widened(numbers, from, i);
        if (type == DTYPE_F32)
            ((float *)to)[i] = v;
        else
            ((u16 *)to)[i] = type == DTYPE_BF16 ? bf16_from_f32(v) : f16_from_f32(v);
    }
}

/* The same to a device: while this travels, the next rows are read. */
static void send(struct device_lane *lane, u8 *image, const struct slot *s, u32 row, u32 n,
                 const void *numbers, enum dtype from)
{
    size_t element = dtype_bytes(s->dtype), first = (size_t)row * s->n_in, count = (size_t)n * s->n_in;
    void *to = device_lane_buffer(lane);
    convert(to, s->dtype, numbers, from, count);
    for (size_t i = 0; i < count && s->plus_one; i++) ((float *)to)[i] += 1;
    device_lane_send(lane, image + s->offset + first * element, count * element);
}

static void list_part(struct filler *x, struct range r)
{
    const struct slot_part *p = &x->layout->slots[r.slot].part[r.part];
    u32 rows = p->rows.n, most = stored_most(p);
    for (; r.row < rows; r.row += r.n) {
        r.n = MIN_OF(most, rows - r.row);
        if (x->n == x->cap) {
            x->cap = x->cap ? 2 * x->cap : 1024;
            x->ranges = mem_resize(x->ranges, x->cap * sizeof *x->ranges);
        }
        r.place = stored_place(p, r.row);
        x->bytes.of += stored_bytes(p, r.n);
        x->ranges[x->n++] = r;
    }
}

static void list_ranges(struct filler *x)
{
    for (u32 i = 0; i < x->layout->n; i++) {
        const struct slot *s = &x->layout->slots[i];
        u32 row0 = 0;
        for (u32 j = 0; j < s->n_parts; j++) {
            list_part(x, (struct range){.slot = i, .part = j, .row0 = row0});
            row0 += s->part[j].rows.n;
        }
    }
}

/* Files are read from front to back, which is what disks, servers and their read-ahead are made for. */
static int by_place(const void *x, const void *y)
{
    const struct range *a = x, *b = y;
    if (a->place != b->place) return a->place < b->place ? -1 : 1;
    return a->row < b->row ? -1 : a->row > b->row;
}

static void ask_ahead(const struct filler *x, u32 i)
{
    if (i >= x->n) return;
    const struct range *r = &x->ranges[i];
    const struct slot_part *p = &x->layout->slots[r->slot].part[r->part];
    stored_ahead(files_of(x, p), p, r->row, r->n);
}

/* The pages of the image that a range goes to, all at once: a fault for each of them costs several times as much. Kernels before 5.14 do
 * not know how, and fault. */
static void touch(const struct filler *x, const struct range *r)
{
    const struct slot *s = &x->layout->slots[r->slot];
    u32 row = r->row0 + r->row;
    size_t page = 4096, first, end;
    if (s->kind == SLOT_PANELS) {
        const struct packed w = slot_packed(s);
        size_t panel = packed_size(&w) / ((s->n_out + PANEL - 1) / PANEL);
        first = row / PANEL * panel;
        end = (row + r->n + PANEL - 1) / PANEL * panel;
    } else {
        size_t line = (size_t)s->n_in * dtype_bytes(s->dtype);
        first = row * line;
        end = (row + r->n) * line;
    }
    uintptr_t at = (uintptr_t)x->image + s->offset, from = (at + first) / page * page;
    madvise((void *)from, at + end - from, MADV_POPULATE_WRITE);
}

static int fill_numbers(struct filler *x, struct reader *own, const struct range *r)
{
    const struct slot *s = &x->layout->slots[r->slot];
    const struct slot_part *p = &s->part[r->part];
    const void *numbers;
    enum dtype dtype;
    int rc = stored_read(files_of(x, p), p, r->row, r->n, &own->room, &numbers, &dtype, &own->err);
    if (rc) return rc;
    if (own->lane)
        send(own->lane, x->image, s, r->row0 + r->row, r->n, numbers, dtype);
    else
        store(x->image, s, r->row0 + r->row, r->n, numbers, dtype);
    return 0;
}

/* Codes as they are stored, or made of numbers now. */
static int fill_codes(struct filler *x, struct reader *own, const struct range *r)
{
    const struct slot *s = &x->layout->slots[r->slot];
    const struct slot_part *p = &s->part[r->part];
    struct stored_room *room = &own->room;
    const struct packed w = slot_packed(s);
    const void *numbers;
    enum dtype dtype;
    bool kept = slot_keeps_codes(s);
    int rc = kept ? stored_codes(x->files, p, r->row, r->n, room, &own->err)
                  : stored_read(x->files, p, r->row, r->n, room, &numbers, &dtype, &own->err);
    if (rc) return rc;
    if (!kept) quantise_rows(&w, r->n, numbers, dtype, room->codes, room->scales, room->zeros);
    pack_codes(x->image + s->offset, &w, r->row0 + r->row, r->n, room->codes, room->scales,
               s->dtype == DTYPE_I4 ? room->zeros : NULL);
    return 0;
}

static int fill_range(struct filler *x, struct reader *own, const struct range *r)
{
    const struct slot *s = &x->layout->slots[r->slot];
    const struct slot_part *p = &s->part[r->part];
    if (!x->place) touch(x, r);
    int rc = dtype_quantised(s->dtype) ? fill_codes(x, own, r) : fill_numbers(x, own, r);
    if (rc) return rc;
    atomic_fetch_add(&x->bytes.done, stored_bytes(p, r->n));
    if (x->progress) atomic_fetch_add(x->progress, stored_bytes(p, r->n));
    return 0;
}

/* `mpiserve up` reads this line, see cli/loading.c. */
static void say(struct filler *x, u64 now, u64 done)
{
    double seconds = (double)(now - x->bytes.start_ns) / NS_PER_S;
    log_info("loading weights: %llu of %llu MB, %.2f GB/s", (unsigned long long)(done / 1000000),
             (unsigned long long)(x->bytes.of / 1000000), (double)done / 1e9 / seconds);
    x->bytes.said_ns = now;
    x->bytes.said = done;
}

/* Once a second, and no more than 50 times: a log of many engines stays readable. */
static void say_progress(struct filler *x)
{
    u64 now = clock_ns(), done = atomic_load(&x->bytes.done);
    if (x->progress && now - x->bytes.said_ns >= NS_PER_S && done - x->bytes.said >= x->bytes.of / 50)
        say(x, now, done);
}

static void fill_thread(void *arg, int thread, int threads)
{
    (void)threads;
    struct filler *x = arg;
    struct reader *own = &x->readers[thread];
    own->rc = stored_room_init(&own->room, &own->err);
    if (!own->rc && x->place && !(own->lane = device_lane_new(x->place->device, 2 * STORED_BYTES, &own->err)))
        own->rc = own->err.code; /* twice, since 16 bits may become 32 */
    for (u32 i; !own->rc && !atomic_load(&x->failed) && (i = atomic_fetch_add(&x->next, 1)) < x->n;) {
        ask_ahead(x, i + AHEAD);
        own->rc = fill_range(x, own, &x->ranges[i]);
        if (thread == 0) say_progress(x);
    }
    int rc = device_lane_free(own->lane, own->rc ? NULL : &own->err);
    if (!own->rc) own->rc = rc;
    if (own->rc) atomic_store(&x->failed, true);
    stored_room_release(&own->room);
}

int weights_threads(void)
{
    cpu_set_t cpus;
    int n = sched_getaffinity(0, sizeof cpus, &cpus) ? 1 : CPU_COUNT(&cpus);
    return MAX_OF(1, MIN_OF(n, (int)MAX_THREADS));
}

static int fill_all(struct filler *x, struct error *err)
{
    struct pool *pool = pool_new(weights_threads(), 0, err);
    if (!pool) return ERR_MEMORY;
    list_ranges(x);
    qsort(x->ranges, x->n, sizeof *x->ranges, by_place);
    x->bytes.start_ns = x->bytes.said_ns = clock_ns();
    pool_run(pool, fill_thread, x);
    pool_free(pool);
    free(x->ranges);
    for (int i = 0; i < MAX_THREADS; i++) {
        const struct error *e = &x->readers[i].err;
        if (x->readers[i].rc) return error_set(err, e->code, e->where, "%s", e->message);
    }
    if (x->bytes.said) say(x, clock_ns(), x->bytes.of);
    return 0;
}

/* One engine of a replica says it for all. */
static void report_unused(const struct model_config *c, const struct shard *part, const struct model_files *f)
{
    const struct shard all = shard_whole(c);
    const char *first = NULL;
    struct layout l;
    if (part->tp_rank || part->pp_rank || layout_build(&l, c, &all, f, NULL, NULL)) return;
    u32 n = layout_unused(&l, c, f, &first);
    layout_release(&l);
    if (n)
        log_warning("%s: %u tensor%s not used by this architecture, the first is %s", c->dir, n,
                    n == 1 ? " is" : "s are", first);
}

int weights_fill(const struct model_config *c, const struct shard *part, const struct model_files *f,
                 const struct weights_place *place, void *image, size_t bytes, _Atomic u64 *progress,
                 struct error *err)
{
    struct layout l;
    int rc = layout_build(&l, c, part, f, place, err);
    if (rc) return rc;
    if (bytes < l.bytes) {
        rc = error_set(err, ERR_INPUT, c->dir,
                       "the weights need %zu bytes, %zu are set aside: the files have changed", l.bytes,
                       bytes);
    } else {
        struct filler x = {.files = f, .layout = &l, .place = place, .image = image, .progress = progress};
        report_unused(c, part, f);
        rc = fill_all(&x, err);
    }
    layout_release(&l);
    return rc;
}

/* ---- binding
 * -------------------------------------------------------------------------------------------------*/
static void bind_adapted(void *adapted, const struct slot *b)
{
    struct adapted *x = adapted;
    x->at = b->outputs_before;
    x->scale = b->scale;
}

int weights_bind(const struct model_config *c, const struct shard *part, const struct model_files *f,
                 const struct weights_place *place, const void *image, struct weights *out, struct error *err)
{
    struct layout l;
    int rc = layout_build(&l, c, part, f, place, err);
    if (rc) return rc;
    memset(out, 0, sizeof *out);
    if (c->load.adapters && c->load.adapters->n)
        out->adapters = mem_zero((size_t)c->load.adapters->n * c->layers, sizeof *out->adapters);
    for (u32 i = 0; i < l.n; i++) {
        const struct slot *s = &l.slots[i];
        const void *data = (const u8 *)image + s->offset;
        if (s->target == TARGET_NONE) continue;
        void *target = (s->adapted ? (u8 *)out->adapters : (u8 *)out) + s->target;
        struct packed w = slot_packed(s);
        w.data = data;
        const struct table rows = {data, s->dtype};
        if (s->kind == SLOT_PANELS)
            memcpy(target, &w, sizeof w);
        else if (s->kind == SLOT_ROWS)
            memcpy(target, &rows, sizeof rows);
        else
            memcpy(target, &data, sizeof data);
        if (s->scale != 0) bind_adapted((u8 *)target - offsetof(struct adapted, b), s);
    }
    layout_release(&l);
    return 0;
}

void weights_release(struct weights *w)
{
    free(w->adapters);
    w->adapters = NULL;
}
