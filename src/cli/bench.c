/* mpiserve bench: which of its parts to run. */
#include "cli/bench.h"
#include "mpiserve/base.h"
#include "mpiserve/cli.h"

#include <stdio.h>
#include <string.h>

static const char usage[] =
    "mpiserve bench route    the routers in simulation, and what a decision costs here\n"
    "mpiserve bench engine   an engine alone: prompts, single tokens, and the limits of this machine\n"
    "Each has a --help.\n";

static const struct part {
    const char *name;
    int (*run)(int argc, char **argv);
} parts[] = {{"route", bench_route}, {"engine", bench_engine}};

int cli_bench(int argc, char **argv)
{
    log_setup(LOG_INFO, "");
    for (size_t i = 0; argc > 2 && i < COUNT_OF(parts); i++)
        if (strcmp(argv[2], parts[i].name) == 0) return parts[i].run(argc, argv);
    if (argc > 2 && (strcmp(argv[2], "--help") == 0 || strcmp(argv[2], "-h") == 0)) {
        fputs(usage, stdout);
        return 0;
    }
    log_error("bench: there are `mpiserve bench route` and `mpiserve bench engine`%s%.80s",
              argc > 2 ? ", not " : "", argc > 2 ? argv[2] : "");
    return 2;
}
