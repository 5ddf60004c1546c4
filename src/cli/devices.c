/* mpiserve devices: GPUs, as engines see them. */
#include "mpiserve/cli.h"
#include "mpiserve/coll.h"
#include "mpiserve/device.h"
#include "mpiserve/json.h"

#include <stdio.h>
#include <string.h>

static void add_device(struct json_out *o, const struct device_info *d)
{
    char capability[24];
    snprintf(capability, sizeof capability, "%u.%u", d->major, d->minor);
    const struct {
        const char *key, *text;
    } texts[] = {{"name", d->name}, {"uuid", d->uuid}, {"bus", d->bus}, {"capability", capability}};
    const struct {
        const char *key;
        u64 n;
    } numbers[] = {{"total_bytes", d->total}, {"free_bytes", d->free}, {"processors", d->processors}};
    json_out_object(o);
    for (size_t i = 0; i < COUNT_OF(texts); i++) {
        json_out_key(o, texts[i].key);
        json_out_str(o, texts[i].text);
    }
    for (size_t i = 0; i < COUNT_OF(numbers); i++) {
        json_out_key(o, numbers[i].key);
        json_out_int(o, (i64)numbers[i].n);
    }
    json_out_end_object(o);
}

/* nccl: its version, 0: there is none. */
static void print_json(const struct device_info *list, int n)
{
    int nccl = coll_nccl_version(NULL);
    struct buf text = {0};
    struct json_out o;
    json_out_init(&o, &text);
    json_out_object(&o);
    json_out_key(&o, "devices");
    json_out_array(&o);
    for (int i = 0; i < n; i++) add_device(&o, &list[i]);
    json_out_end_array(&o);
    json_out_key(&o, "nccl");
    json_out_int(&o, MAX_OF(nccl, 0));
    json_out_end_object(&o);
    puts(text.data);
    buf_release(&text);
}

static void print_text(const struct device_info *list, int n)
{
    for (int i = 0; i < n; i++)
        printf("%d  %s  %s  %s  %llu of %llu MiB free  compute capability %u.%u, %u multiprocessors\n", i,
               list[i].name, list[i].uuid, list[i].bus, (unsigned long long)(list[i].free >> 20),
               (unsigned long long)(list[i].total >> 20), list[i].major, list[i].minor, list[i].processors);
    struct error err;
    char line[1100];
    int nccl = coll_nccl_version(&err);
    if (nccl < 0)
        printf("no NCCL: one GPU for a model (%s)\n", error_text(&err, line, sizeof line));
    else
        printf("NCCL %d.%d.%d: a model may have several GPUs\n", nccl / 10000, nccl / 100 % 100, nccl % 100);
}

static const char usage[] =
    "mpiserve devices [--json [UUID]]: the GPUs that an engine started here could use, and NCCL\n";

/* Those asked for, looked at if somebody wants to know what is free. */
static int find(struct device_info *list, const char *uuid, bool look, struct error *err)
{
    int n = device_list(list, DEVICE_MAX, err), kept = 0, rc = MIN_OF(n, 0);
    for (int i = 0; i < n && rc == 0; i++) {
        if (uuid && strcmp(list[i].uuid, uuid) != 0) continue;
        list[kept] = list[i];
        if (look) rc = device_look(&list[kept], err);
        kept++;
    }
    return rc < 0 ? rc : kept;
}

int cli_devices(int argc, char **argv)
{
    static struct device_info list[DEVICE_MAX];
    struct error err;
    char line[1100];
    bool json = argc > 2 && strcmp(argv[2], "--json") == 0;
    const char *uuid = json && argc == 4 ? argv[3] : NULL;
    if (argc > 4 || (argc > 2 && !json)) {
        fputs(usage, stderr);
        return 2;
    }
    int n = find(list, uuid, uuid || !json, &err);
    if (n < 0) {
        fprintf(stderr, "mpiserve devices: %s\n", error_text(&err, line, sizeof line));
        return 1;
    }
    json ? print_json(list, n) : print_text(list, n);
    return n == 0;
}
