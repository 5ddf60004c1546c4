/* config: the parts of reading config.json. Inside the model room. */
#ifndef MPISERVE_MODEL_CONFIG_H
#define MPISERVE_MODEL_CONFIG_H

#include "model/fields.h"
#include "mpiserve/model.h"

enum { MAX_WIDTH = 1 << 20 }; /* of any activation */

void arch_list(struct buf *out);                      /* "llama, mistral, ..." */
bool word_listed(const char *word, const char *list); /* list: words between spaces, " a b " */
/* Refuses keys that are not understood and may change the maths. */
int config_check_keys(struct fields *f, const struct arch *arch);
/* sliding_window, layer_types and their kin: out->window. */
int config_windows(struct fields *f, struct model_config *out);
/* The sizes of latent attention. */
int config_mla(struct fields *f, struct model_config *out);
/* Experts and routing: out->moe, out->sparse. */
int config_moe(struct fields *f, struct model_config *out);
/* An encoder: which class it is (with what head), then all but the sizes. */
int config_encoder_class(struct fields *f, const char *class, struct model_config *out);
int config_encoder(struct fields *f, struct model_config *out);
/* Complains unless the key names the architecture's activation. */
void config_activation(struct fields *f, const struct arch *a, const char *key);
/* quantization_config: how weights are stored. */
int config_quant(struct fields *f, struct model_config *out);
/* rope_parameters, or rope_theta and rope_scaling. Comes last: needs the sizes, may change score_scale and max_position. */
int config_rope(struct fields *f, struct model_config *out);
/* The files of sentence-transformers in out->dir, before anything else is read; and what they change of what was read. */
int config_pooling(struct model_config *out, struct error *err);
int config_pooled(struct model_config *out, struct error *err);
/* generation_config.json of out->dir over what config.json (root) says of end tokens. */
int config_generation(const struct json *root, struct model_config *out, struct error *err);

#endif
