/* mpiserve: which of its commands to run. Without one, the process is a rank of a job. */
#include "mpiserve/agent.h"
#include "mpiserve/base.h"
#include "mpiserve/cli.h"
#include "mpiserve/config.h"
#include "mpiserve/engine.h"

#include <stdio.h>
#include <string.h>

static int help_main(int argc, char **argv)
{
    if (argc == 3 && strcmp(argv[1], "help") == 0 && config_document(argv[2]) == 0) return 0;
    config_help(argv[0]);
    return 0;
}

static int version_main(int argc, char **argv)
{
    (void)argc, (void)argv;
    puts("mpiserve " MPISERVE_VERSION);
    return 0;
}

/* Every command gets argc and argv as the process got them. */
static const struct command {
    const char *name;
    int (*run)(int argc, char **argv);
} commands[] = {
    {"up", cli_up},
    {"plan", cli_plan},
    {"status", cli_status},
    {"devices", cli_devices},
    {"doctor", cli_doctor},
    {"bench", cli_bench},
    {"sweep", cli_sweep},
    {"tokenize", cli_tokenize},
    {"detokenize", cli_detokenize},
    {"render", cli_render},
    {"doctor-probe", cli_doctor_probe},
    {"engine", engine_main},
    {"help", help_main},
    {"--help", help_main},
    {"-h", help_main},
    {"version", version_main},
    {"--version", version_main},
};

int main(int argc, char **argv)
{
    for (size_t i = 0; argc > 1 && i < COUNT_OF(commands); i++)
        if (strcmp(argv[1], commands[i].name) == 0) return commands[i].run(argc, argv);
    return agent_main(argc, argv);
}
