/* What can be asked for. A new page is one row and one function. */
#include "ingress/http.h"

#include <string.h>

enum { PROBE = ROUTE_OPEN | ROUTE_UNCOUNTED };

static const struct route ROUTES[] = {
    {"/v1/chat/completions", METHOD_POST, ROUTE_WORK | ROUTE_RESERVED, answer_chat},
    {"/v1/completions", METHOD_POST, ROUTE_WORK | ROUTE_RESERVED, answer_completions},
    {"/v1/embeddings", METHOD_POST, ROUTE_WORK | ROUTE_RESERVED, answer_embeddings},
    {"/v1/rerank", METHOD_POST, ROUTE_WORK | ROUTE_RESERVED, answer_rerank},
    {"/v2/rerank", METHOD_POST, ROUTE_WORK | ROUTE_RESERVED, answer_rerank},
    {"/rerank", METHOD_POST, ROUTE_WORK | ROUTE_RESERVED, answer_rerank},
    {"/v1/score", METHOD_POST, ROUTE_WORK | ROUTE_RESERVED, answer_score},
    {"/score", METHOD_POST, ROUTE_WORK | ROUTE_RESERVED, answer_score},
    {"/v1/models", METHOD_GET, 0, answer_models},
    {"/v1/models/", METHOD_GET, ROUTE_TAIL, answer_model},
    {"/v1/reservations", METHOD_POST, 0, answer_reserve},
    {"/v1/reservations/", METHOD_GET | METHOD_DELETE, ROUTE_TAIL, answer_reservation},
    {"/tokenize", METHOD_POST, ROUTE_WORK, answer_tokenize},
    {"/detokenize", METHOD_POST, ROUTE_WORK, answer_detokenize},
    {"/apply-template", METHOD_POST, ROUTE_WORK, answer_apply_template},
    {"/admin/drain", METHOD_POST, ROUTE_ADMIN, answer_drain},
    {"/v1/topology", METHOD_GET, 0, answer_topology},
    {"/metrics", METHOD_GET, PROBE, answer_metrics},
    {"/health", METHOD_GET, PROBE, answer_health},
    {"/v1/health", METHOD_GET, PROBE, answer_health},
    {"/ping", METHOD_GET | METHOD_POST, PROBE, answer_health},
    {"/ready", METHOD_GET, PROBE, answer_health},
    {"/readyz", METHOD_GET, PROBE, answer_health},
    {"/live", METHOD_GET, PROBE, answer_live},
    {"/livez", METHOD_GET, PROBE, answer_live},
    {"/healthz", METHOD_GET, PROBE, answer_live},
    {"/load", METHOD_GET, PROBE, answer_load},
    {"/version", METHOD_GET, PROBE, answer_version},
};

const struct route *route_find(const char *path, const char *method, const char **tail, u8 *methods)
{
    u8 want = strcmp(method, "GET") == 0 || strcmp(method, "HEAD") == 0 ? METHOD_GET
              : strcmp(method, "POST") == 0                             ? METHOD_POST
              : strcmp(method, "DELETE") == 0                           ? METHOD_DELETE
                                                                        : 0;
    *methods = 0;
    *tail = "";
    for (size_t i = 0; i < COUNT_OF(ROUTES); i++) {
        const struct route *r = &ROUTES[i];
        size_t len = strlen(r->path);
        bool prefix = r->flags & ROUTE_TAIL;
        if (prefix ? strncmp(path, r->path, len) != 0 || !path[len] : strcmp(path, r->path) != 0) continue;
        *methods = r->methods;
        if (prefix) *tail = path + len;
        return r->methods & want ? r : NULL;
    }
    return NULL;
}
