/* The command lines that start a planned job. */
#include "cli/plan.h"

#include <stdlib.h>
#include <string.h>

/* As a shell wants it. */
static void add_word(struct buf *to, const char *word)
{
    static const char plain[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-+=./,:@%";
    if (to->len) buf_char(to, ' ');
    if (word[0] && strspn(word, plain) == strlen(word)) {
        buf_text(to, word);
        return;
    }
    buf_char(to, '\'');
    for (; *word; word++)
        if (*word == '\'')
            buf_text(to, "'\\''");
        else
            buf_char(to, *word);
    buf_char(to, '\'');
}

void plan_commands(struct plan *p, int argc, char **argv, int first)
{
    const struct ground *g = &p->ground;
    const char **passed = mem_zero((size_t)argc + 1, sizeof *passed);
    int n = config_passed(argc, argv, first, passed, argc);
    u32 ranks = g->n_nodes * g->ranks_per_node;
    add_word(&p->up, argv[0]);
    buf_printf(&p->up, " up -n %u", ranks);
    buf_text(&p->mpirun, "mpirun");
    if (g->n_nodes > 1) buf_text(&p->mpirun, " --hostfile HOSTS");
    buf_printf(&p->mpirun, " -np %u", ranks);
    if (g->n_nodes > 1) buf_printf(&p->mpirun, " --map-by ppr:%u:node", g->ranks_per_node);
    buf_text(&p->mpirun, " --oversubscribe --bind-to none");
    add_word(&p->mpirun, argv[0]);
    buf_printf(&p->sbatch, "sbatch --nodes=%u --ntasks-per-node=%u --cpus-per-task=%u --mem=0", g->n_nodes,
               g->ranks_per_node, MAX_OF(g->topo->n_cpus / g->ranks_per_node, 1u));
    if (strcmp(p->config.engine, "cuda") == 0) buf_printf(&p->sbatch, " --gpus-per-node=%u", p->most_engines);
    buf_text(&p->sbatch, " slurm/serve.slurm");
    for (int i = 0; i < n; i++) {
        add_word(&p->up, passed[i]);
        add_word(&p->mpirun, passed[i]);
        add_word(&p->sbatch, passed[i]);
    }
    free(passed);
}
