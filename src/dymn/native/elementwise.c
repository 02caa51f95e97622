/* The Dy-ReLU of two maps and the weights of Coordinate Attention, with their gradients, for training on a CPU: each reads a feature
 * map once and sums all gradients on the way. A map is one channel of one clip.
 */

#include "maps.h"

typedef struct {
    const float *x, *gradient;        /* [maps][n] */
    const float *slope, *intercept;   /* [maps][2] */
    float *out, *dx;                  /* [maps][n]; either may be 0 */
    float *dslope, *dintercept;       /* [maps][2] */
    int maps, n;
} Maximum;

static void maximum_of_maps(const void *work, int first_map, int last_map, int share) {
    (void)share;
    const Maximum *m = work;
    for (int map = first_map; map < last_map; map++) {
        const float *x = m->x + (int64_t)map * m->n, *g = m->gradient ? m->gradient + (int64_t)map * m->n : 0;
        vec a0 = splat(m->slope[2 * map]), a1 = splat(m->slope[2 * map + 1]);
        vec b0 = splat(m->intercept[2 * map]), b1 = splat(m->intercept[2 * map + 1]);
        if (m->out)
            for (int i = 0; i < m->n; i += LANES) {
                vec value = load_part(x + i, m->n - i);
                store_part(m->out + (int64_t)map * m->n + i, maximum(a0 * value + b0, a1 * value + b1), m->n - i);
            }
        if (!g) continue;
        wide first = {{0}}, first_x = {{0}}, second = {{0}}, second_x = {{0}};
        for (int i = 0; i < m->n; i += LANES) {
            vec value = load_part(x + i, m->n - i), d = load_part(g + i, m->n - i);
            vec first_d = masked(d, a0 * value + b0 > a1 * value + b1), second_d = d - first_d;
            if (m->dx) store_part(m->dx + (int64_t)map * m->n + i, a0 * first_d + a1 * second_d, m->n - i);
            wide wide_x = widened(value), to_first = widened(first_d), to_second = widened(second_d);
            add(&first, to_first);
            add_product(&first_x, to_first, wide_x);
            add(&second, to_second);
            add_product(&second_x, to_second, wide_x);
        }
        m->dslope[2 * map] = (float)total_of(first_x);
        m->dslope[2 * map + 1] = (float)total_of(second_x);
        m->dintercept[2 * map] = (float)total_of(first);
        m->dintercept[2 * map + 1] = (float)total_of(second);
    }
}

typedef struct {
    const float *x, *gradient;    /* [maps][F][T] */
    const float *frequency, *time; /* [maps][F], [maps][T] */
    float *out, *dx;              /* [maps][F][T]; either may be 0 */
    float *dfrequency, *dtime;
    int maps, n_bands, n_frames;
} Gates;

static void weigh(const void *work, int first, int last, int share) {
    (void)share;
    const Gates *w = work;
    int n = w->n_frames;
    for (int map = first; map < last; map++) {
        const float *time = w->time + (int64_t)map * n;
        float *dtime = w->gradient ? w->dtime + (int64_t)map * n : 0;
        if (dtime) memset(dtime, 0, sizeof(float) * (size_t)n);
        for (int f = 0; f < w->n_bands; f++) {
            int64_t row = ((int64_t)map * w->n_bands + f) * n;
            vec gate = splat(w->frequency[(int64_t)map * w->n_bands + f]), sum = splat(0);
            for (int t = 0; t < n; t += LANES) {
                int left = n - t;
                vec value = load_part(w->x + row + t, left), weight = load_part(time + t, left);
                if (w->out) store_part(w->out + row + t, value * gate * weight, left);
                if (!dtime) continue;
                vec d = load_part(w->gradient + row + t, left);
                if (w->dx) store_part(w->dx + row + t, d * gate * weight, left);
                sum += d * value * weight;
                store_part(dtime + t, load_part(dtime + t, left) + d * value * gate, left);
            }
            if (dtime) w->dfrequency[(int64_t)map * w->n_bands + f] = total(sum);
        }
    }
}

EXPORT void dymn_maximum(const Maximum *m, int32_t n_threads) { for_maps(maximum_of_maps, m, m->maps, n_threads); }
EXPORT void dymn_weigh(const Gates *w, int32_t n_threads) { for_maps(weigh, w, w->maps, n_threads); }
