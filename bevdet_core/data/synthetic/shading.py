"""Light and colour: turns the rasteriser's buffers into an image with ground, sky, haze and shadows."""

from __future__ import annotations

import numpy as np
from numba import njit

from .ground import ground_colour, ground_noise
from .mesh import FACADE, FOLIAGE, GLASS, GLOWING
from .noise import lattice, noise, wrap
from .scenery import BAY, STOREY
from .sky import sky_colour


@njit(cache=True, error_model="numpy")
def light_faces(
    poses,  # [O, 4]
    face_start,  # [O + 1]
    normals,  # [F, 3] solid frame
    colours,  # [F, 3]
    materials,  # [F]
    light,
    lit,  # [F, 3] out
):
    """Colours of all faces under the sun and the sky."""
    for o in range(poses.shape[0]):
        c, s = np.cos(poses[o, 3]), np.sin(poses[o, 3])
        for f in range(face_start[o], face_start[o + 1]):
            nx, ny, nz = c * normals[f, 0] - s * normals[f, 1], s * normals[f, 0] + c * normals[f, 1], normals[f, 2]
            direct = max(nx * light.sun[0] + ny * light.sun[1] + nz * light.sun[2], 0.0)
            above = 0.5 + 0.5 * nz
            mirror = 0.10 + 0.28 * max(nz, 0.0) if materials[f] == GLASS else 0.0
            for i in range(3):
                falling = light.ambient[i] * above + light.bounce[i] * (1 - above) + light.sun_colour[i] * direct
                if materials[f] == GLOWING:
                    falling = 1.0
                lit[f, i] = colours[f, i] * falling * (1 - mirror) + light.horizon[i] * mirror


@njit(cache=True, error_model="numpy")
def facade(along, z, house, red, green, blue, light, tile):
    """Colour of a house wall of a lit colour: a plinth, and a window in every bay of every storey, some of them lit.

    Args:
        along: metres along the wall from the middle of the house.
        z: metres above the ground.
        house: number that sets its windows apart from those of others.
        red: of the lit wall, as are green and blue.
        green: see above.
        blue: see above.
        light: its horizon is mirrored in the panes.
        tile: of noise.
    """
    if z < 0.5:
        return 0.72 * red, 0.72 * green, 0.72 * blue
    bay, storey = wrap(along, BAY), wrap(z, STOREY)
    if bay < 0.75 or bay > 1.85 or storey < 1.0 or storey > 2.5:
        return red, green, blue
    if bay < 0.84 or bay > 1.76 or storey < 1.1 or storey > 2.4:
        return 1.18 * red, 1.18 * green, 1.18 * blue
    if lattice(tile, along / BAY + 7 * house, z / STOREY) > 0.66:
        return 0.80, 0.70, 0.46
    sheen = 0.30 * (0.5 + 0.2 * storey)
    return 0.12 + sheen * light.horizon[0], 0.12 + sheen * light.horizon[1], 0.12 + sheen * light.horizon[2]


@njit(cache=True, error_model="numpy")
def shade(
    rotation,  # [3, 3] world -> camera
    position,  # [3]
    intrinsic,  # [4] of the supersampled image
    inverse_depth,  # [sH, sW]
    face_index,  # [sH, sW]
    shadow_mask,  # [sH, sW]
    lit,  # [F, 3] colours of the faces under the light
    face_solids,  # [F] which solid a face belongs to
    materials,  # [F]
    normals,  # [F, 3] solid frame
    poses,  # [O, 4]
    light,
    ground,
    tile,  # [256, 256]
    image,  # [H, W, 3] out, uint8
    solids,  # [H, W] out: solid that fills most of the pixel, -1 for ground and sky
    visible,  # [O] out: supersampled pixels of each solid
):
    """Colours every pixel and averages its samples; what varies slowly is worked out once for a pixel."""
    height, width, _ = image.shape
    samples = inverse_depth.shape[0] // height
    fx, fy, cx, cy = intrinsic[0], intrinsic[1], intrinsic[2], intrinsic[3]
    votes = np.empty(samples * samples, np.int32)
    visible[:] = 0
    share = 255.0 / (samples * samples)
    sun_from_above = light.sun[2]
    for row in range(height):
        for column in range(width):
            total_red, total_green, total_blue = 0.5, 0.5, 0.5
            last_face = -1
            has_ground, has_sky = False, False
            red, green, blue = 0.0, 0.0, 0.0
            sky_red, sky_green, sky_blue = 0.0, 0.0, 0.0
            broad, coarse, fine, detail, clear_ground = 0.0, 0.0, 0.0, 0.0, 1.0
            for sample in range(samples * samples):
                r, q = row * samples + sample // samples, column * samples + sample % samples
                f = face_index[r, q]
                if f >= 0:
                    visible[face_solids[f]] += 1
                    votes[sample] = face_solids[f]
                    if f == last_face and materials[f] != FACADE:
                        total_red, total_green, total_blue = total_red + red, total_green + green, total_blue + blue
                        continue
                else:
                    votes[sample] = -1
                a, b = (q + 0.5 - cx) / fx, (r + 0.5 - cy) / fy
                dx = rotation[0, 0] * a + rotation[1, 0] * b + rotation[2, 0]
                dy = rotation[0, 1] * a + rotation[1, 1] * b + rotation[2, 1]
                dz = rotation[0, 2] * a + rotation[1, 2] * b + rotation[2, 2]
                last_face = f
                if f >= 0:
                    depth = 1.0 / inverse_depth[r, q]
                    x, y, z = position[0] + dx * depth, position[1] + dy * depth, position[2] + dz * depth
                    red, green, blue = lit[f, 0], lit[f, 1], lit[f, 2]
                    factor = (0.72 + 0.4 * min(max(z, 0.0), 0.7)) * share  # less light reaches what is near the ground
                    if materials[f] == FOLIAGE:
                        factor *= 0.62 + 0.76 * noise(tile, (x + y) * 9.0, z * 9.0 + (x - y) * 5.0)
                    elif materials[f] == FACADE and abs(normals[f, 2]) < 0.5:
                        o = face_solids[f]
                        c, s = np.cos(poses[o, 3]), np.sin(poses[o, 3])
                        lx, ly = x - poses[o, 0], y - poses[o, 1]
                        along = c * lx + s * ly if abs(normals[f, 1]) > 0.5 else c * ly - s * lx
                        red, green, blue = facade(along, z, o, red, green, blue, light, tile)
                    clear = np.exp(-light.haze * depth)
                    fog = (1 - clear) * share
                    factor *= clear
                    red = red * factor + light.horizon[0] * fog
                    green = green * factor + light.horizon[1] * fog
                    blue = blue * factor + light.horizon[2] * fog
                elif dz < -1e-6:
                    t = -position[2] / dz
                    x, y = position[0] + t * dx, position[1] + t * dy
                    if not has_ground:
                        has_ground = True
                        broad, coarse, fine = ground_noise(x, y, tile)
                        detail = 1.0 / (1.0 + 0.0025 * t * t)
                        clear_ground = np.exp(-light.haze * t)
                    red, green, blue = ground_colour(x, y, broad, coarse, fine, detail, ground, tile)
                    sun = sun_from_above * (1.0 - light.shadow * shadow_mask[r, q])
                    clear, fog = clear_ground * share, (1 - clear_ground) * share
                    red = red * (light.ambient[0] + light.sun_colour[0] * sun) * clear + light.horizon[0] * fog
                    green = green * (light.ambient[1] + light.sun_colour[1] * sun) * clear + light.horizon[1] * fog
                    blue = blue * (light.ambient[2] + light.sun_colour[2] * sun) * clear + light.horizon[2] * fog
                else:
                    if not has_sky:
                        has_sky = True
                        sky_red, sky_green, sky_blue = sky_colour(dx, dy, dz, light, tile)
                    red, green, blue = sky_red * share, sky_green * share, sky_blue * share
                total_red, total_green, total_blue = total_red + red, total_green + green, total_blue + blue
            image[row, column, 0] = np.uint8(min(total_red, 255.0))
            image[row, column, 1] = np.uint8(min(total_green, 255.0))
            image[row, column, 2] = np.uint8(min(total_blue, 255.0))
            solids[row, column] = most_frequent(votes)


@njit(cache=True, inline="always", error_model="numpy")
def most_frequent(votes):
    """The value that occurs most often; among equals the first."""
    best, best_count = votes[0], 0
    for i in range(votes.shape[0]):
        count = 0
        for j in range(votes.shape[0]):
            count += votes[j] == votes[i]
        if count > best_count:
            best, best_count = votes[i], count
    return best
