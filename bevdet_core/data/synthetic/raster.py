"""The rasteriser: convex faces through a pinhole camera into a depth and a face-index buffer.

Camera frame: x right, y down, z forward, metres. A pixel in column c and row r covers [c, c + 1) x [r, r + 1) and is
sampled in its middle. Inverse depth is linear on the image plane: a face is one scan conversion without any division.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NEAR = 0.15
"""Metres in front of the camera where faces are clipped."""

MAX_CORNERS = 24
"""Room for the corners of one face after clipping."""


@njit(cache=True, error_model="numpy")
def clip_and_project(
    corners,  # [n, 3] camera frame
    n,
    focal_x,
    focal_y,
    centre_x,
    centre_y,
    out,  # [MAX_CORNERS, 2] pixels
):
    """Cuts a polygon at the near plane and projects the rest; returns the number of corners written to `out`."""
    count = 0
    for i in range(n):
        j = i + 1 if i + 1 < n else 0
        zi, zj = corners[i, 2], corners[j, 2]
        if zi >= NEAR:
            out[count, 0] = corners[i, 0] / zi * focal_x + centre_x
            out[count, 1] = corners[i, 1] / zi * focal_y + centre_y
            count += 1
        if (zi >= NEAR) != (zj >= NEAR):
            t = (NEAR - zi) / (zj - zi)
            out[count, 0] = (corners[i, 0] + t * (corners[j, 0] - corners[i, 0])) / NEAR * focal_x + centre_x
            out[count, 1] = (corners[i, 1] + t * (corners[j, 1] - corners[i, 1])) / NEAR * focal_y + centre_y
            count += 1
    return count


@njit(cache=True, inline="always", error_model="numpy")
def row_range(polygon, n, height):
    """First and one-past-last row whose middles the polygon [n, 2] can cover."""
    low, high = polygon[0, 1], polygon[0, 1]
    for i in range(1, n):
        low = min(low, polygon[i, 1])
        high = max(high, polygon[i, 1])
    if high < 0.0 or low > height:
        return 0, 0
    return max(0, int(np.ceil(low - 0.5))), min(height, int(np.ceil(high - 0.5)))


@njit(cache=True, inline="always", error_model="numpy")
def column_range(polygon, n, row, width):
    """First and one-past-last column of a convex polygon in one row."""
    y = row + 0.5
    left, right = 1e9, -1e9
    for i in range(n):
        j = i + 1 if i + 1 < n else 0
        yi, yj = polygon[i, 1], polygon[j, 1]
        if (yi <= y) != (yj <= y):
            x = polygon[i, 0] + (y - yi) / (yj - yi) * (polygon[j, 0] - polygon[i, 0])
            left = min(left, x)
            right = max(right, x)
    if right < 0.0 or left > width:
        return 0, 0
    return max(0, int(np.ceil(left - 0.5))), min(width, int(np.ceil(right - 0.5)))


@njit(cache=True, inline="always", error_model="numpy")
def sphere_is_outside(x, y, z, radius, focal_x, focal_y, centre_x, centre_y, width, height):
    """Whether a sphere in the camera frame lies wholly outside the viewing frustum."""
    if z + radius < NEAR:
        return True
    right, left = (width - centre_x) / focal_x, centre_x / focal_x
    down, up = (height - centre_y) / focal_y, centre_y / focal_y
    return (
        x - right * z > radius * np.sqrt(1 + right * right)
        or -x - left * z > radius * np.sqrt(1 + left * left)
        or y - down * z > radius * np.sqrt(1 + down * down)
        or -y - up * z > radius * np.sqrt(1 + up * up)
    )


@njit(cache=True, error_model="numpy")
def rasterise(
    rotation,  # [3, 3] world -> camera
    position,  # [3] of the camera in the world
    intrinsic,  # [4] focal x, focal y, centre x, centre y in pixels
    poses,  # [O, 4] x, y, z, yaw of every solid in the world
    radii,  # [O] of the sphere about (0, 0, heights / 2) that holds the solid
    heights,  # [O]
    vertices,  # [V, 3] solid frame
    vertex_start,  # [O + 1]
    loops,  # [K] indices into `vertices`
    loop_start,  # [F + 1]
    normals,  # [F, 3] solid frame
    face_start,  # [O + 1]
    inverse_depth,  # [H, W] out: 1 / z, 0 where no face is
    face_index,  # [H, W] out: face, -1 where none is
    stamp,  # [H, W] out: last solid that touched the pixel, hidden or not
    covered,  # [O] out: pixels of each solid as if nothing stood in front of it
):
    """Draws all solids; the nearest face wins each pixel."""
    height, width = inverse_depth.shape
    fx, fy, cx, cy = intrinsic[0], intrinsic[1], intrinsic[2], intrinsic[3]
    inverse_depth[:] = 0.0
    face_index[:] = -1
    stamp[:] = -1
    covered[:] = 0
    turned = np.empty((3, 3))
    corners = np.empty((MAX_CORNERS, 3))
    polygon = np.empty((MAX_CORNERS, 2))
    camera_vertices = np.empty((vertices.shape[0], 3))
    for o in range(poses.shape[0]):
        dx, dy, dz = poses[o, 0] - position[0], poses[o, 1] - position[1], poses[o, 2] - position[2]
        ox = rotation[0, 0] * dx + rotation[0, 1] * dy + rotation[0, 2] * dz
        oy = rotation[1, 0] * dx + rotation[1, 1] * dy + rotation[1, 2] * dz
        oz = rotation[2, 0] * dx + rotation[2, 1] * dy + rotation[2, 2] * dz
        half = heights[o] / 2
        mx, my, mz = ox + rotation[0, 2] * half, oy + rotation[1, 2] * half, oz + rotation[2, 2] * half
        if sphere_is_outside(mx, my, mz, radii[o], fx, fy, cx, cy, width, height):
            continue
        c, s = np.cos(poses[o, 3]), np.sin(poses[o, 3])
        for i in range(3):
            turned[i, 0] = rotation[i, 0] * c + rotation[i, 1] * s
            turned[i, 1] = -rotation[i, 0] * s + rotation[i, 1] * c
            turned[i, 2] = rotation[i, 2]
        for v in range(vertex_start[o], vertex_start[o + 1]):
            for i in range(3):
                camera_vertices[v, i] = (
                    turned[i, 0] * vertices[v, 0] + turned[i, 1] * vertices[v, 1] + turned[i, 2] * vertices[v, 2]
                )
            camera_vertices[v, 0] += ox
            camera_vertices[v, 1] += oy
            camera_vertices[v, 2] += oz
        for f in range(face_start[o], face_start[o + 1]):
            nx = turned[0, 0] * normals[f, 0] + turned[0, 1] * normals[f, 1] + turned[0, 2] * normals[f, 2]
            ny = turned[1, 0] * normals[f, 0] + turned[1, 1] * normals[f, 1] + turned[1, 2] * normals[f, 2]
            nz = turned[2, 0] * normals[f, 0] + turned[2, 1] * normals[f, 1] + turned[2, 2] * normals[f, 2]
            first = loops[loop_start[f]]
            distance = nx * camera_vertices[first, 0] + ny * camera_vertices[first, 1] + nz * camera_vertices[first, 2]
            if distance > -1e-6:
                continue  # seen from behind
            n = loop_start[f + 1] - loop_start[f]
            for i in range(n):
                v = loops[loop_start[f] + i]
                corners[i, 0], corners[i, 1], corners[i, 2] = (
                    camera_vertices[v, 0],
                    camera_vertices[v, 1],
                    camera_vertices[v, 2],
                )
            n = clip_and_project(corners, n, fx, fy, cx, cy, polygon)
            if n < 3:
                continue
            step = nx / fx / distance
            row_low, row_high = row_range(polygon, n, height)
            for row in range(row_low, row_high):
                low, high = column_range(polygon, n, row, width)
                value = (nx * ((low + 0.5 - cx) / fx) + ny * ((row + 0.5 - cy) / fy) + nz) / distance
                for column in range(low, high):
                    if stamp[row, column] != o:
                        stamp[row, column] = o
                        covered[o] += 1
                    if value > inverse_depth[row, column]:
                        inverse_depth[row, column] = value
                        face_index[row, column] = f
                    value += step


@njit(cache=True, error_model="numpy")
def cast_shadows(
    rotation,  # [3, 3] world -> camera
    position,  # [3]
    intrinsic,  # [4]
    sun,  # [3] unit vector towards the sun, world
    poses,  # [O, 4]
    radii,  # [O]
    heights,  # [O]
    vertices,  # [V, 3]
    vertex_start,  # [O + 1]
    loops,  # [K]
    loop_start,  # [F + 1]
    normals,  # [F, 3]
    face_start,  # [O + 1]
    mask,  # [H, W] out: 1 where the ground lies in a shadow
):
    """Projects the sunlit faces of all solids along the light onto the ground z = 0."""
    height, width = mask.shape
    fx, fy, cx, cy = intrinsic[0], intrinsic[1], intrinsic[2], intrinsic[3]
    mask[:] = 0
    corners = np.empty((MAX_CORNERS, 3))
    polygon = np.empty((MAX_CORNERS, 2))
    on_ground = np.empty((vertices.shape[0], 3))
    slope_x, slope_y = sun[0] / sun[2], sun[1] / sun[2]
    for o in range(poses.shape[0]):
        reach = heights[o] * np.sqrt(slope_x * slope_x + slope_y * slope_y) / 2
        dx = poses[o, 0] - position[0] - slope_x * heights[o] / 2
        dy = poses[o, 1] - position[1] - slope_y * heights[o] / 2
        dz = -position[2]
        mx = rotation[0, 0] * dx + rotation[0, 1] * dy + rotation[0, 2] * dz
        my = rotation[1, 0] * dx + rotation[1, 1] * dy + rotation[1, 2] * dz
        mz = rotation[2, 0] * dx + rotation[2, 1] * dy + rotation[2, 2] * dz
        if sphere_is_outside(mx, my, mz, radii[o] + reach, fx, fy, cx, cy, width, height):
            continue
        c, s = np.cos(poses[o, 3]), np.sin(poses[o, 3])
        for v in range(vertex_start[o], vertex_start[o + 1]):
            z = poses[o, 2] + vertices[v, 2]
            gx = poses[o, 0] + c * vertices[v, 0] - s * vertices[v, 1] - slope_x * z - position[0]
            gy = poses[o, 1] + s * vertices[v, 0] + c * vertices[v, 1] - slope_y * z - position[1]
            for i in range(3):
                on_ground[v, i] = rotation[i, 0] * gx + rotation[i, 1] * gy - rotation[i, 2] * position[2]
        for f in range(face_start[o], face_start[o + 1]):
            nx, ny = c * normals[f, 0] - s * normals[f, 1], s * normals[f, 0] + c * normals[f, 1]
            if nx * sun[0] + ny * sun[1] + normals[f, 2] * sun[2] <= 0:
                continue
            n = loop_start[f + 1] - loop_start[f]
            for i in range(n):
                v = loops[loop_start[f] + i]
                corners[i, 0], corners[i, 1], corners[i, 2] = on_ground[v, 0], on_ground[v, 1], on_ground[v, 2]
            n = clip_and_project(corners, n, fx, fy, cx, cy, polygon)
            if n < 3:
                continue
            row_low, row_high = row_range(polygon, n, height)
            for row in range(row_low, row_high):
                low, high = column_range(polygon, n, row, width)
                for column in range(low, high):
                    mask[row, column] = 1
