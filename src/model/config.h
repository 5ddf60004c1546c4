/* config: the parts of reading config.json. Inside the model room. */
#ifndef MPISERVE_MODEL_CONFIG_H
#define MPISERVE_MODEL_CONFIG_H

#include "model/fields.h"
#include "mpiserve/model.h"

void arch_list(struct buf *out); /* "llama, mistral, ..." */
/* Refuses keys that are not understood and may change the maths. */
int config_check_keys(struct fields *f);
/* rope_parameters, or rope_theta and rope_scaling. Needs out->max_position. */
int config_rope(struct fields *f, struct model_config *out);
/* generation_config.json of out->dir over what config.json (root) says of end tokens. */
int config_generation(const struct json *root, struct model_config *out, struct error *err);

#endif
