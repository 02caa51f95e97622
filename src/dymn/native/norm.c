/* Batch norm with the statistics of the batch and the activation behind it, with its gradients, for training on a CPU.
 *
 * A channel is a map of n values in each clip. Its statistics and then its values are computed while it lies in the cache.
 */

#include <math.h>

#include "maps.h"

enum { IDENTITY, RELU, HARDSWISH };

typedef struct {
    const float *x, *gradient;     /* [clips][channels][n]; the gradient is 0 in the forward pass */
    const float *weight, *bias;    /* [channels] */
    float *out, *dx;               /* as x; dx may be 0 */
    double *mean, *variance;       /* [channels], written by the forward pass; the variance is that of a population */
    float *dweight, *dbias;        /* [channels] */
    int clips, channels, n, activation;
    float eps;
} Norm;

INLINE vec activated(int activation, vec y) {
    if (activation == RELU) return maximum(y, splat(0));
    if (activation == HARDSWISH) return y * minimum(maximum(y + 3.f, splat(0)), splat(6)) * (1.f / 6);
    return y;
}

/* The gradient d of the activation's output as one of its input y. */
INLINE vec to_input(int activation, vec y, vec d) {
    if (activation == RELU) return masked(d, y > 0.f);
    if (activation == HARDSWISH) return masked(d, y >= 3.f) + masked(d * (y * (1.f / 3) + 0.5f), (y > -3.f) & (y < 3.f));
    return d;
}

/* The compiler takes every number for finite, and so would fold a comparison. */
INLINE int is_finite(double value) {
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (bits >> 52 & 0x7ff) != 0x7ff;
}

INLINE void write_as(int activation, const Norm *w, int channel, float scale, float shift) {
    for (int clip = 0; clip < w->clips; clip++) {
        int64_t map = ((int64_t)clip * w->channels + channel) * w->n;
        for (int i = 0; i < w->n; i += LANES)
            store_part(w->out + map + i, activated(activation, scale * load_part(w->x + map + i, w->n - i) + shift), w->n - i);
    }
}

INLINE void forward_as(int activation, const Norm *w, int channel) {
    wide sum = {{0}}, squares = {{0}};
    for (int clip = 0; clip < w->clips; clip++) {
        const float *x = w->x + ((int64_t)clip * w->channels + channel) * w->n;
        for (int i = 0; i < w->n; i += LANES) {
            wide value = widened(load_part(x + i, w->n - i));
            add(&sum, value);
            add_product(&squares, value, value);
        }
    }
    double count = (double)w->clips * w->n, mean = total_of(sum) / count;
    double variance = fabs(total_of(squares) / count - mean * mean); /* rounding may leave it just below 0 */
    double scale = w->weight[channel] / sqrt(variance + w->eps);
    w->mean[channel] = mean;
    w->variance[channel] = variance;
    if (is_finite(variance)) write_as(activation, w, channel, (float)scale, (float)(w->bias[channel] - mean * scale));
    else write_as(IDENTITY, w, channel, (float)scale, (float)(w->bias[channel] - mean * scale)); /* ReLU would hide it */
}

INLINE void backward_as(int activation, const Norm *w, int channel) {
    double count = (double)w->clips * w->n, mean = w->mean[channel], inverse = 1 / sqrt(w->variance[channel] + w->eps);
    double exact_scale = w->weight[channel] * inverse;
    float scale = (float)exact_scale, shift = (float)(w->bias[channel] - mean * exact_scale);
    wide sum = {{0}}, products = {{0}};
    for (int clip = 0; clip < w->clips; clip++) {
        int64_t map = ((int64_t)clip * w->channels + channel) * w->n;
        for (int i = 0; i < w->n; i += LANES) {
            vec value = load_part(w->x + map + i, w->n - i), d = load_part(w->gradient + map + i, w->n - i);
            wide part = widened(to_input(activation, scale * value + shift, d));
            add(&sum, part);
            add_product(&products, part, widened(value));
        }
    }
    double dbias = total_of(sum), dweight = (total_of(products) - mean * dbias) * inverse;
    w->dbias[channel] = (float)dbias;
    w->dweight[channel] = (float)dweight;
    if (!w->dx) return;
    float middle = (float)mean, mean_part = (float)(dbias / count), by_x = (float)(inverse * dweight / count);
    for (int clip = 0; clip < w->clips; clip++) {
        int64_t map = ((int64_t)clip * w->channels + channel) * w->n;
        for (int i = 0; i < w->n; i += LANES) {
            vec value = load_part(w->x + map + i, w->n - i), d = load_part(w->gradient + map + i, w->n - i);
            vec part = to_input(activation, scale * value + shift, d);
            store_part(w->dx + map + i, scale * (part - mean_part - (value - middle) * by_x), w->n - i);
        }
    }
}

INLINE void normalise_as(int activation, const Norm *w, int first, int last) {
    for (int channel = first; channel < last; channel++)
        if (w->gradient) backward_as(activation, w, channel);
        else forward_as(activation, w, channel);
}

static void normalise(const void *work, int first, int last, int share) {
    (void)share;
    const Norm *w = work;
    if (w->activation == RELU) normalise_as(RELU, w, first, last);
    else if (w->activation == HARDSWISH) normalise_as(HARDSWISH, w, first, last);
    else normalise_as(IDENTITY, w, first, last);
}

EXPORT void dymn_normalise(const Norm *w, int32_t n_threads) { for_maps(normalise, w, w->channels, n_threads); }
